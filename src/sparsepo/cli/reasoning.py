"""``sparsepo reasoning``: Open LLM Leaderboard tasks with lm-eval, normalised, before and after training."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .base import CliError
from .loading_flags import add_loading_flags
from .saved_runs import check_output_folder


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``reasoning``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "reasoning",
        help="Open LLM Leaderboard tasks with lm-eval, normalised, before and after training",
        description="Runs tasks of lm-eval. Those of the Open LLM Leaderboard (version 2) are normalised as it does: chance "
        "is 0, everything right is 100. With --before the same tasks run on the model before training, and differences are "
        "taken document by document. With --output each task's results are kept, and a later run goes on.",
    )
    parser.add_argument("model", help="folder of a model or adapter, or hub id")
    parser.add_argument("--before", metavar="BASE", help="the model before training: folder or hub id")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["leaderboard"],
        help="tasks and groups of lm-eval (default: leaderboard, all six)",
    )
    parser.add_argument(
        "--include_path", metavar="FOLDER", help="tasks of your own as YAML files; they come before built-in ones"
    )
    parser.add_argument("--limit", type=int, help="only so many documents a task: a trial, no result")
    parser.add_argument("--chat_template", action="store_true", help="for chat models, as the leaderboard does")
    parser.add_argument("--output", metavar="FOLDER", help="write reasoning.json and reasoning.csv there, resumable")
    parser.add_argument("--batch_size", type=int, default=8, help="(default: %(default)s)")
    add_loading_flags(parser, "auto")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the tasks and show the table. Returns 0."""
    from rich.console import Console

    from sparsepo.evaluation.leaderboard.running import check_loadable, expanded, task_manager

    from .kept import Kept
    from .models import check_model_name

    _check(args)
    names = {"after": check_model_name(args.model, "MODEL")}
    if args.before is not None:
        names = {"before": check_model_name(args.before, "before"), **names}
    if args.chat_template:
        _refuse_without_template(args, names.values())
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # a page of settings for every task
    console = Console()
    manager = task_manager(args.tasks, args.include_path)
    jobs = expanded(args.tasks, manager)
    folder = None if args.output is None else Path(args.output).expanduser()
    keep = Kept(None if folder is None else folder / "tasks")
    keys = {side: {job: _key(args, name, job, manager) for job in jobs} for side, name in names.items()}
    missing = [job for job in jobs if any(keep.is_missing(own[job]) for own in keys.values())]
    check_loadable(missing, manager)
    results = {side: _results(args, side, names[side], keys[side], manager, keep, console) for side in names}
    _show(args, results, folder, console)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CliError(f"--{name} {value}: must be at least 1.")
    if args.include_path is not None and not Path(args.include_path).expanduser().is_dir():
        raise CliError(f"--include_path {args.include_path}: no such folder.")
    if args.include_path is not None:
        args.include_path = str(Path(args.include_path).expanduser())
    check_output_folder(args.output)


def _refuse_without_template(args: argparse.Namespace, names: Iterable[str]) -> None:
    from .models import load_tokenizer

    for name in names:
        if load_tokenizer(name, trust_remote_code=args.trust_remote_code).chat_template is None:
            raise CliError(f"--chat_template: the tokenizer of {name} has no chat template; leave the flag out.")


def _key(args: argparse.Namespace, name: str, job: str, manager: Any) -> str:
    """Tells a result from those of other models, settings and versions of the task."""
    from importlib.metadata import version

    from sparsepo.evaluation.leaderboard.running import task_state
    from sparsepo.evaluation.summaries.items import text_hash
    from sparsepo.inspection.summary_page import safe_name

    from .kept import model_state

    about = [
        model_state(name),
        task_state(job, manager),
        args.limit,
        args.chat_template,
        args.dtype,
        version("lm_eval"),
    ]
    return f"{safe_name(job)}-{text_hash(json.dumps(about, sort_keys=True))}"


def _results(
    args: argparse.Namespace, side: str, name: str, keys: Mapping[str, str], manager: Any, keep: Any, console: Any
) -> dict[str, Any]:
    """Task → result; the model is loaded only if a task is missing."""
    from functools import cache

    from sparsepo.evaluation.leaderboard import TaskResult
    from sparsepo.evaluation.leaderboard.running import run_job

    from .models import load_for_sampling, load_tokenizer
    from .tables import say

    model = cache(lambda: load_for_sampling(name, args.dtype, args.use_cpu, args.trust_remote_code))
    tokenizer = cache(lambda: load_tokenizer(name, trust_remote_code=args.trust_remote_code))
    found: dict[str, TaskResult] = {}
    for number, (job, key) in enumerate(keys.items(), start=1):
        state = "runs" if keep.is_missing(key) else "was there"
        say(console, f"{side} ({name}) {number}/{len(keys)} {job}: {state}")

        def compute(job: str = job) -> list[dict[str, Any]]:
            settings = {"limit": args.limit, "batch_size": args.batch_size, "chat_template": args.chat_template}
            return [own.to_json() for own in run_job(job, model(), tokenizer(), manager, **settings)]

        for own in keep(key, compute):
            found[own["task"]] = TaskResult(**own)
    return found


def _show(args: argparse.Namespace, results: dict[str, dict[str, Any]], folder: Path | None, console: Any) -> None:
    from sparsepo.inspection.document import write_whole
    from sparsepo.inspection.leaderboard_tables import csv_text, report, tables

    from .tables import say, text_table

    content = report(results)
    for title, (header, rows) in tables(content).items():
        console.print(text_table(title, header, rows))
    if content["benchmarks"]:
        say(console, "normalised: 0 is chance, 100 is everything right; ± is one standard error over documents")
    if args.limit is not None:
        say(console, f"with --limit {args.limit} this is a trial and no result of the benchmarks")
    if folder is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("func", "command", "output")}
        content = {"settings": settings, **content}
        write_whole(folder / "reasoning.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_whole(folder / "reasoning.csv", csv_text(content))
        say(console, f"wrote {folder / 'reasoning.json'} and reasoning.csv; tasks that are done are not run again")
