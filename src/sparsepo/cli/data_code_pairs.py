"""``sparsepo data code-pairs``: pairs of passing and failing programs from MBPP's reference solutions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .base import CliError
from .execution_flags import add_execution_flags, executor_of

_ABOUT = """Make preference pairs of programs from MBPP: the reference solution is chosen, and rejected is the same program
with one small change after which it fails its tests. Both are run, in the sandbox; changes that the tests do not see make no
pair."""


def add_code_pairs(commands: Any) -> None:
    """Register ``data code-pairs``; the namespace's ``func`` runs it and returns the exit status."""
    parser = commands.add_parser(
        "code-pairs", help="MBPP's solutions → passing and failing programs", description=_ABOUT, allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", help="MBPP with its reference solutions (.jsonl, .json, .parquet)")
    parser.add_argument(
        "--output", required=True, metavar="OUT", help="file for the pairs (.jsonl, .jsonl.gz, .parquet)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")
    parser.add_argument("--split", choices=("all", "test", "validation", "train"), default="all", help="(default: all)")
    parser.add_argument("--pairs", type=int, default=4, help="most pairs of a task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of changes (default: %(default)s)")
    parser.add_argument("--eval_fraction", type=float, help="share of the TASKS whose pairs go to a second file")
    parser.add_argument("--eval_output", metavar="OUT", help="that file (default: OUT with .eval before its suffix)")
    add_execution_flags(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Make the pairs. Returns 0 when at least one was written."""
    from rich.console import Console
    from rich.progress import Progress

    from sparsepo.data import split_by_prompt
    from sparsepo.data.writing import check_output, write_rows
    from sparsepo.evaluation.code.pairs import code_pairs
    from sparsepo.evaluation.code.problems import mbpp_rows

    from .data import eval_output
    from .tables import say

    output = check_output(Path(args.output), args.overwrite)
    held_output = eval_output(args, output)
    console = Console()
    executor = executor_of(args, console)
    rows = mbpp_rows(args.file, args.split)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("running programs", total=None)
        pairs, report = code_pairs(
            rows,
            executor,
            count=args.pairs,
            seed=args.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in report.lines():
        say(console, line)
    if not pairs:
        raise CliError(f"{args.file}: no pairs could be made; the lines above say why.")
    if held_output is not None:
        pairs, held_out = split_by_prompt(pairs, args.eval_fraction, args.seed)
        write_rows(held_out, held_output, args.overwrite)
        say(console, f"Wrote {len(held_out):,} eval pairs (other tasks) to {held_output}")
    write_rows(pairs, output, args.overwrite)
    say(console, f"Wrote {len(pairs):,} pairs to {output}")
    return 0
