"""Studies on the playground: ``python -m sparsepo.experiments.studies NAME --output DIR --jobs N``.

Each run's result is a JSON file in DIR/runs; a study that was interrupted, or is started in several terminals, goes on
with what is missing. Tables with 95 % intervals over seeds go to the screen and to DIR/NAME.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .grids import GRIDS
from .running import run_tasks
from .store import Store
from .tables import COLUMNS, controls_table, study_table
from .tasks import Task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study and print its tables. Returns 0, or 1 where runs failed or are missing."""
    args = _parser().parse_args(arguments)
    store = Store(args.output)
    tasks = study_tasks(args)
    if args.list:
        for task in tasks:
            print(f"{'done' if store.result(task) else '    '} seed {task.seed}  {task.label}")
        return 0
    if not args.report_only:
        run_tasks(tasks, store, args.jobs)
    report = study_report(args.study, tasks, store)
    (Path(args.output) / f"{args.study}.md").write_text(report, encoding="utf-8")
    print(report)
    return int(any(store.result(task) is None for task in tasks))


def study_tasks(args: argparse.Namespace) -> list[Task]:
    """The tasks that the command line asks for."""
    tasks = GRIDS[args.study](args.seeds)
    if args.only is not None:
        tasks = [task for task in tasks if any(word in task.label for word in args.only)]
    if args.quick:
        tasks = [task.quick() for task in tasks]
    return tasks if args.limit is None else tasks[: args.limit]


def study_report(name: str, tasks: Sequence[Task], store: Store) -> str:
    """The study's page: what it asks, its table, and the controls of its seeds."""
    question = (GRIDS[name].__doc__ or "").strip()
    parts = [f"# Study: {name}\n", f"{question}\n", study_table(tasks, store, COLUMNS[name])]
    controls = controls_table(tasks, store)
    if controls:
        parts += ["## Controls\n", controls]
    parts.append("Mean ± half of the 95 % interval over seeds (Student's t).\n")
    return "\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparsepo.experiments.studies", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("study", choices=list(GRIDS))
    parser.add_argument("--output", required=True, help="folder of results; materials of a seed are made there once")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--limit", type=int, help="only the first tasks, which say the most")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only settings whose name holds one of these words")
    parser.add_argument("--quick", action="store_true", help="every run in seconds, nothing is learned well")
    parser.add_argument("--report_only", action="store_true", help="run nothing, write the tables of what is done")
    parser.add_argument("--list", action="store_true", help="show the tasks and which are done")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
