"""Studies on the playground: ``python -m sparsepo.experiments.studies NAME --output DIR --jobs N``.

Each run's result is a JSON file in DIR/runs; a study that was interrupted, or is started in several terminals, goes on
with what is missing. Tables with 95 % intervals go to the screen and to DIR/NAME.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from sparsepo.data.errors import DataError

from . import matched
from .efficiency import efficiencies, efficiency_table
from .exchange import check_results_file, export_results, import_results
from .grids import ANCHOR, GRIDS, Setting, defaults
from .running import run_tasks
from .store import Store
from .tables import COLUMNS, PAIRED, controls_table, paired_table, study_table, verdict_table
from .tasks import Task

STUDIES = (*GRIDS, "tuning", "finals")
SEEDS = {"defaults": (0, 1, 2, 3, 4), "targets": (0, 1, 2, 3, 4), "finals": (11, 12, 13, 14, 15), "tuning": (0,)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study and print its tables. Returns 0, or 1 where runs failed or are missing."""
    args = _parser().parse_args(arguments)
    if args.seeds is None:
        args.seeds = list(SEEDS.get(args.study, (0, 1, 2)))
    store = Store(args.output)
    try:
        exported = None if args.export is None else check_results_file(args.export)
        for path in args.results:
            print(f"{path}: {import_results(path, store)} runs that were not in {args.output}")
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if args.settings is not None and args.study != "defaults":
        raise SystemExit(f"--settings {args.settings} has no effect with {args.study}: it is read by defaults only.")
    if args.study == "tuning":
        return _tuning(args, store)
    tasks = study_tasks(args, store)
    if args.list:
        for task in tasks:
            print(f"{'done' if store.result(task) else '    '} seed {task.seed}  {task.label}")
        return 0
    if not args.report_only:
        run_tasks(tasks, store, args.jobs)
    if exported is not None:
        print(f"{exported}: {export_results(tasks, store, exported)} runs")
    report = (
        finals_report(tasks, store, args.quick) if args.study == "finals" else study_report(args.study, tasks, store)
    )
    _publish(args, report)
    return int(any(store.result(task) is None for task in tasks))


def study_tasks(args: argparse.Namespace, store: Store) -> list[Task]:
    """The tasks that the command line asks for."""
    if args.study == "finals":
        tasks = matched.final_tasks(store, args.seeds, _sizes(args.quick))
    else:
        given = {} if args.settings is None else {"candidates": read_settings(args.settings)}
        tasks = defaults(args.seeds, **given) if args.study == "defaults" else GRIDS[args.study](args.seeds)
        if args.quick:
            tasks = [task.quick() for task in tasks]
    if args.only is not None:
        tasks = [task for task in tasks if any(word in task.label for word in args.only)]
        _refuse_nothing(tasks, args.only)
    return tasks if args.limit is None else tasks[: args.limit]


def read_settings(path: str) -> list[Setting]:
    """Settings from a JSON file: {"name": {"mask_gate": …, …}, …}.

    Raises:
        ValueError: the file holds anything else.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(own, dict) for own in content.values()):
        raise ValueError(f'{path} must hold {{"name": {{settings of SparsePOConfig}}, …}}.')
    return list(content.items())


def study_report(name: str, tasks: Sequence[Task], store: Store) -> str:
    """The study's page: what it asks, its table, and the controls of its seeds."""
    question = (GRIDS[name].__doc__ or "").strip()
    parts = [f"# Study: {name}\n", f"{question}\n", study_table(tasks, store, COLUMNS[name])]
    if name in ("defaults", "targets"):
        parts += ["## Is it good enough for a default?\n", verdict_table(tasks, store)]
    if name in PAIRED and (paired := paired_table(tasks, store, PAIRED[name])):
        parts += ["## Seed by seed\n", paired]
    controls = controls_table(tasks, store)
    if controls:
        parts += ["## Controls\n", controls]
    parts.append("Mean ± half of the 95 % interval over seeds (Student's t).\n")
    return "\n".join(parts)


def finals_report(tasks: Sequence[Task], store: Store, quick: bool = False) -> str:
    """The page of study (f): tables at matched KL, the optimum, and the runs themselves."""
    sizes = _sizes(quick)
    parts = ["# Study: finals\n", f"{matched.__doc__}\n"]
    curves, optima = matched.final_curves(tasks, store, sizes)
    if curves:
        parts += [
            "## At the end of training, each at its own KL\n",
            efficiency_table(efficiencies(curves, optima, matched.efficiency_baselines(), sizes.draws)),
        ]
    try:
        parts.append(matched.final_tables(*matched.final_comparison(curves, optima, sizes.draws)))
        parts.append("Estimate [95 % interval], bootstrap over seeds and prompts, the same draws for all methods.\n")
        parts += ["## The optimum: the reference tilted by the reward\n", matched.optimum_table(tasks, store, sizes)]
    except ValueError as error:  # too few samples for a budget: say so, the runs themselves are good
        parts.append(f"No comparison: {error}\n")
    parts += ["## At the end of training\n", study_table(tasks, store, COLUMNS["anchor"])]
    return "\n".join(parts)


def _tuning(args: argparse.Namespace, store: Store) -> int:
    if args.list or args.limit is not None:
        raise SystemExit("tuning takes neither --list nor --limit: its later runs depend on its first; use --only.")
    if args.export is not None:
        raise SystemExit("tuning writes no --export: what it found is in tuning.json.")
    if not args.report_only:
        methods = [name for name in matched.METHODS if args.only is None or any(word in name for word in args.only)]
        _refuse_nothing(methods, args.only)
        for seed in args.seeds[:1]:
            matched.tune(store, methods, (0.0, ANCHOR), seed, args.jobs, _sizes(args.quick), args.quick)
    found = matched.read_tuning(store)
    budgets = ", ".join(f"{budget:g}" for budget in matched.KL_BUDGETS)
    report = (
        "# Study: tuning\n\nβ and learning rate by successive halving on one seed; score: mean of the reward within "
        f"{budgets} nats of sequence KL.\n\n{matched.tuning_table(found)}"
    )
    _publish(args, report)
    return int(any(entry["score"] is None for entry in found.values()))


def _refuse_nothing(found: Sequence[object], words: Sequence[str] | None) -> None:
    if not found:
        raise SystemExit(f"--only {' '.join(words or ())}: no setting's name holds one of these words.")


def _sizes(quick: bool) -> matched.Sizes:
    return matched.Sizes().quick() if quick else matched.Sizes()


def _publish(args: argparse.Namespace, report: str) -> None:
    (Path(args.output) / f"{args.study}.md").write_text(report, encoding="utf-8")
    print(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparsepo.experiments.studies",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--output", required=True, help="folder of results; materials of a seed are made there once")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: %(default)s)")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="default: 0 1 2; defaults and targets 0 to 4; tuning 0; finals 11 to 15, none of which may be tuning's",
    )
    parser.add_argument("--limit", type=int, help="only the first tasks, which say the most")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only settings whose name holds one of these words")
    parser.add_argument("--settings", metavar="FILE", help="defaults: judge these settings instead, JSON by name")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results that --export wrote: not run again, in the tables",
    )
    parser.add_argument("--export", metavar="FILE", help="write the study's results into one .jsonl or .jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="every run in seconds, nothing is learned well")
    parser.add_argument("--report_only", action="store_true", help="run nothing, write the tables of what is done")
    parser.add_argument("--list", action="store_true", help="show the tasks and which are done")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
