"""Every table of the benchmarks with one command, and a page that says where each stands and what was to be shown.

    python benchmarks/run_all.py                     # all tables, the most telling first: hours
    python benchmarks/run_all.py --tables scorer_float32 prefix_float32 step_targets
    python benchmarks/run_all.py --quick             # tiny sizes into runs/benchmarks_quick: to see that it works

Tables go to OUTPUT/NAME.md and NAME.json; OUTPUT/README.md lists them. A table that is there is not measured again, also
within a script that was cut off: the command goes on where it stopped. ``--force`` measures again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import CLOCKS, TASK_LENGTHS
from targets import target_table

HERE = Path(__file__).parent
RESPONSES = tuple(shape.split(",")[1] for shape in ("64,192", "8,64", "150,80", "350,40"))
STEP_TARGETS = (
    "TRL DPO",
    "TRL DPO, head on responses",
    "SparsePO",
    "LoRA: TRL DPO, reference precomputed",
    "LoRA: TRL DPO, precomputed, head on responses",
    "LoRA: MaPO, reference cached",
    "LoRA: SparsePO, reference cached",
)
# sizes at which every script ends in seconds
QUICK = {
    "scorer.py": ("--vocabulary", "400", "--hidden", "32", "--tokens", "12"),
    "step.py": ("--vocabulary", "400", "--hidden", "64", "--layers", "1", "--shapes", "12,4", "--checkpointing", "off"),
    "prefix.py": (
        "--checkpointing",
        "off",
        "--hidden",
        "64",
        "--layers",
        "1",
        "--shapes",
        "24,4",
        "--vocabulary",
        "400",
    ),
    "rows.py": ("--vocabularies", "301", "--rows", "16"),
}


@dataclass(frozen=True)
class Table:
    """One file of results: what it holds, and the script and arguments that make it."""

    text: str
    script: str
    arguments: tuple[str, ...] = ()


def all_tables() -> dict[str, Table]:
    """Tables by name, the most telling first."""
    tables = {
        "scorer_float32": Table("scoring heads alone, V 50257, float32", "scorer.py", ("--memory", "--tokens", *RESPONSES)),
        "prefix_float32": Table("backbone with each prompt once", "prefix.py"),
        "step_targets": Table(
            "whole steps: ours and TRL's, full and LoRA", "step.py", ("--exactly", *STEP_TARGETS)
        ),
    }  # fmt: skip
    for vocabulary, hidden in ((50257, 768), (151936, 1024)):
        for dtype in ("float32", "bfloat16"):
            suffix = dtype if vocabulary == 50257 else f"{dtype}_v152k"
            sizes = ("--dtype", dtype, "--vocabulary", str(vocabulary))
            what = f"V {vocabulary}, {dtype}"
            head = ("--memory", "--tokens", *RESPONSES, "--hidden", str(hidden), *sizes)
            tables.setdefault(f"scorer_{suffix}", Table(f"scoring heads alone, {what}", "scorer.py", head))
            step = ("--memory", *sizes, "--shapes", *TASK_LENGTHS)
            tables[f"step_{suffix}"] = Table(f"whole steps of all variants, {what}", "step.py", step)
    tables["prefix_bfloat16"] = Table("as prefix_float32, bfloat16", "prefix.py", ("--dtype", "bfloat16"))
    tables["rows"] = Table("arithmetic on rows of logits", "rows.py")
    return tables


def command_of(args: argparse.Namespace, name: str, table: Table, output: Path) -> list[str]:
    """The command line that makes a table."""
    command = [sys.executable, str(HERE / table.script), *table.arguments]
    if args.quick:
        command += QUICK[table.script]  # later arguments win
    rounds = 1 if args.quick else args.rounds
    command += ["--output", str(output), *(["--rounds", str(rounds)] if rounds else [])]
    if table.script != "rows.py":
        command += ["--clock", args.clock, *(["--fresh"] if args.force or _is_foreign(output) else [])]
    return command


def _is_foreign(output: Path) -> bool:
    """Whether a file is there that the scripts did not write as they write now."""
    path = output.with_suffix(".json")
    return path.exists() and "results" not in json.loads(path.read_text())


def _setting_of(path: Path) -> str:
    if not path.exists():
        return "not measured yet"
    setting = json.loads(path.read_text()).get("setting", "")
    return setting if isinstance(setting, str) else "its first lines say"


def index_page(folder: Path, tables: dict[str, Table]) -> str:
    """Markdown: targets, and the tables with what they were measured on."""
    lines = ["| table | what | measured on |", "|---|---|---|"]
    for name, table in tables.items():
        path = folder / f"{name}.json"
        setting = _setting_of(path)
        link = f"[{name}]({name}.md)" if path.exists() else name
        lines.append(f"| {link} | {table.text} | {setting} |")
    plots = sorted(file.name for file in (folder / "plots").glob("*.png"))
    pictures = "".join(f"\n![{name.removesuffix('.png')}](plots/{name})\n" for name in plots)
    return (
        "# Results of the benchmarks\n\nMade by `python benchmarks/run_all.py`; "
        "[how each is measured](../README.md). Ratios are of medians, with the smallest and largest ratio within a round "
        f"in brackets.\n\n## Tables\n\n{chr(10).join(lines)}\n\n{target_table(folder)}{pictures}"
    )


def main() -> None:
    tables = all_tables()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=tuple(tables), metavar="NAME", help=", ".join(tables))
    parser.add_argument("--output", type=Path, help="folder of the results (benchmarks/results)")
    parser.add_argument("--rounds", type=int, help="instead of each script's own number")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: to see that it works")
    parser.add_argument("--index", action="store_true", help="only write the page that lists the tables")
    args = parser.parse_args()
    # with tiny sizes the other precisions and vocabularies would be the same again
    names = args.tables or [
        name for name in tables if not args.quick or ("bfloat16" not in name and "v152k" not in name)
    ]
    folder = args.output or (Path("runs/benchmarks_quick") if args.quick else HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in () if args.index else names:
        table, output = tables[name], folder / name
        if table.script == "rows.py" and output.with_suffix(".json").exists() and not args.force:
            print(f"{name}: there", file=sys.stderr)
        else:
            print(f"==== {name}: {table.text}", file=sys.stderr, flush=True)
            done = subprocess.run(command_of(args, name, table, output), stdout=subprocess.DEVNULL)
            failed += [name] if done.returncode else []
        (folder / "README.md").write_text(index_page(folder, tables))
    page = index_page(folder, tables)
    (folder / "README.md").write_text(page)
    print(page)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)} (the reasons stand above)")


if __name__ == "__main__":
    main()
