"""``sparsepo experiment``: the paper's tasks from data to figures, resumable and shared between processes and machines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CliError

if TYPE_CHECKING:
    from sparsepo.experiments.pipeline.recipe import Recipe
    from sparsepo.experiments.pipeline.stages import Plan

# repeated here because importing the recipes takes a moment (a test compares them)
TASKS = ("sentiment", "dialogue", "summarisation", "code", "playground")
STALE_AFTER = 300.0
_EPILOG = """examples:
  sparsepo experiment run --list
  sparsepo experiment run sentiment --size small --data_dir DATA --output runs/sentiment --jobs 2
  sparsepo experiment run sentiment --size paper --dry_run
  sparsepo experiment status runs/sentiment"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``experiment`` with ``run`` and ``status``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "experiment",
        help="a task of the paper, from data to table and plot",
        description="Run a task of the paper at any size: data, SFT, pairs, every method with β swept and several seeds, "
        "evaluation, tables, plots. What is done is not done again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="experiment_command", required=True, metavar="run | status")
    _add_run(commands)
    _add_status(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run what is not done yet",
        description="Run the stages that are not done. Started again, in a second terminal or on another machine with the "
        "same --output on a shared folder, it takes what nobody else is at.",
    )
    run.add_argument("task", nargs="?", choices=TASKS, help="what is to be learned")
    run.add_argument(
        "--size", default="small", help="smoke, small, paper, or the path of a recipe (default: %(default)s)"
    )
    run.add_argument("--output", metavar="FOLDER", help="folder of the experiment (default: runs/TASK_SIZE)")
    run.add_argument("--data_dir", metavar="DIR", help="folder of the files that the recipe names (default: .)")
    run.add_argument("--data", nargs="+", default=[], metavar="ROLE=FILE", help="other data; --dry_run lists the roles")
    run.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="change a setting of the recipe: betas=[0.1,0.5] train.max_steps=20; null leaves it out",
    )  # fmt: skip
    run.add_argument(
        "--jobs", type=int, default=1, help="processes on this machine, one thread each (default: %(default)s)"
    )
    _add_stale_after(run)
    run.add_argument(
        "--allow-code-execution", "--allow_code_execution", action="store_true", dest="may_execute",
        help="run programs in the sandbox; the code task needs it",
    )  # fmt: skip
    run.add_argument("--list", action="store_true", dest="show_list", help="show tasks and sizes, and end")
    run.add_argument("--dry_run", action="store_true", help="show stages, runs, data, models and disk, and end")
    run.add_argument("--report_only", action="store_true", help="write tables and plots of what is done, run nothing")
    run.set_defaults(func=run_experiment)


def _add_status(commands: Any) -> None:
    status = commands.add_parser("status", help="stages and runs of an experiment, and who is at them")
    status.add_argument("folder", help="folder of the experiment")
    status.add_argument("--json", action="store_true", dest="as_json", help="as JSON")
    _add_stale_after(status)
    status.set_defaults(func=show_status)


def _add_stale_after(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stale_after", type=float, default=STALE_AFTER, metavar="SECONDS",
        help="take over what nobody has given a sign of life of for so long (default: %(default)g); the same everywhere",
    )  # fmt: skip


def run_experiment(args: argparse.Namespace) -> int:
    """Run. Returns 0, or 1 where runs failed or are missing."""
    from sparsepo.experiments.pipeline.planning import plan_of, resolve_sources
    from sparsepo.experiments.pipeline.recipe import read_recipe

    if args.show_list:
        return _show_list()
    if args.task is None:
        raise CliError(f"Name a task: {', '.join(TASKS)}; --list shows their sizes.")
    if args.jobs < 1:
        raise CliError(f"--jobs {args.jobs} must be at least 1.")
    if not args.stale_after > 0:
        raise CliError(f"--stale_after {args.stale_after:g} must be above 0 seconds.")
    recipe = read_recipe(args.task, args.size, args.changes, args.data)
    output = Path(args.output or f"runs/{recipe.task}_{recipe.size}").expanduser()
    if args.dry_run:
        return _dry_run(recipe, args, output)
    _refuse_execution(recipe, args.may_execute)
    plan = plan_of(recipe, resolve_sources(recipe, args.data_dir))
    _claim_folder(output, plan)
    if not args.report_only:
        _check_commands(recipe)
        _work(plan, output, args, recipe.keep_models)
    return _report(recipe, plan, output)


def _show_list() -> int:
    from sparsepo.experiments.pipeline.recipe import available, read_recipe

    for task, size in available():
        recipe = read_recipe(task, size)
        runs = sum(len(recipe.betas_of(method)) for method in recipe.methods) * len(recipe.seeds)
        print(f"{task:<14} {size:<6} {runs:>4} runs  {recipe.hardware}\n  {recipe.about}")
    return 0


def _dry_run(recipe: Recipe, args: argparse.Namespace, output: Path) -> int:
    from sparsepo.experiments.pipeline.needs import needs_of, role_help
    from sparsepo.experiments.pipeline.planning import plan_of, resolve_sources

    problem = None
    try:
        sources = resolve_sources(recipe, args.data_dir)
    except ValueError as error:
        problem, sources = str(error), {role: list(items) for role, items in recipe.data.items()}
    plan = plan_of(recipe, sources)
    needs = needs_of(recipe, plan, sources)
    print(f"{recipe.task}, size {recipe.size}: {recipe.about}\nhardware: {recipe.hardware}\nfolder: {output}")
    print("stages: " + ", ".join(f"{count} {group}" for group, count in needs.stages.items()))
    print("runs:\n  " + "\n  ".join(needs.grid))
    print("data:" + "".join(f"\n  {role}: {where} ({size})" for role, where, size in needs.data))
    print("models:" + "".join(f"\n  {use}: {name}" for use, name in needs.models))
    print(f"disk: about {needs.disk_gb:g} GB for the models of all runs")
    if recipe.task != "playground":
        print(f"roles of --data:\n{role_help(recipe.task)}")
    if problem is not None:
        raise CliError(problem)
    return 0


def _refuse_execution(recipe: Recipe, may_execute: bool) -> None:
    """Programs are run by whoever says so, and never otherwise."""
    runs_programs = recipe.task == "code" and (
        recipe.pairs["source"] == "sampled" or recipe.pairs["check"] or recipe.reward["kind"] == "tests"
    )
    if runs_programs and not may_execute:
        raise CliError(
            "This experiment runs programs (tests of mutants and of what the models write) in the sandbox: give "
            "--allow-code-execution. To run none: --set pairs.check=false reward.kind=rouge, which takes mutants "
            "untested and compares samples with the solutions."
        )
    if runs_programs:
        from sparsepo.evaluation.code import Executor

        Executor(may_execute)  # refuses a system that cannot contain programs


def _claim_folder(output: Path, plan: Plan) -> None:
    """Refuse a folder that is something else; say what changed since the last time; keep the plan."""
    from sparsepo.experiments.pipeline.folder import PLAN, ExperimentFolder
    from sparsepo.experiments.pipeline.stages import changes

    if output.exists() and not output.is_dir():
        raise CliError(f"--output {output} is a file; give a folder.")
    folder = ExperimentFolder(output)
    before = folder.plan() if output.is_dir() else None
    if before is None and output.is_dir() and any(output.iterdir()):
        raise CliError(f"--output {output} holds something else than an experiment (no {PLAN}); give another folder.")
    if before is not None and (before["task"], before["size"]) != (plan.task, plan.size):
        raise CliError(
            f"--output {output} holds the experiment {before['task']} at size {before['size']}, not {plan.task} at "
            f"{plan.size}; give another folder."
        )
    for line in changes(before, plan) if before is not None else ():
        print(f"changed: {line}")
    folder.save_plan(plan.to_json())


def _check_commands(recipe: Recipe) -> None:
    """Refuse settings that training would refuse hours later."""
    from sparsepo.experiments.pipeline.recipe import SFT

    from .experiment_commands import InProcess

    print("checking settings …", flush=True)
    commands = InProcess()
    check_positions(recipe)
    if recipe.start is None and recipe.task != "playground":
        commands.check("sft", recipe.sft)
    for method in recipe.methods:
        for beta in recipe.betas_of(method) if method != SFT else ():
            try:
                commands.check("train", recipe.flags_of(method, beta or 0.0))
            except (CliError, ValueError) as error:
                raise CliError(f"{method}: {error}") from error


def check_positions(recipe: Recipe) -> None:
    """Refuse prompts that leave no room for a response in the positions of the model that all runs start from.

    Raises:
        CliError: names the settings. Nothing is said of a model that cannot be looked at now.
    """
    from .models import check_model_name, positions_of

    name = recipe.start or recipe.sft.get("model_name_or_path")
    if name is None:
        return  # a small model that is made here, whose lengths its commands fit
    try:
        positions = positions_of(check_model_name(name, "model_name_or_path"))
    except CliError:
        return
    if positions is None:
        return
    longest, prompts, new = (
        recipe.train.get("max_prompt_length"),
        recipe.evaluate["max_prompt_tokens"],
        recipe.evaluate["max_new_tokens"],
    )
    if longest is not None and longest >= positions:
        raise CliError(
            f"train.max_prompt_length={longest} leaves no room for a response in the {positions} positions of {name}; "
            "make it smaller."
        )
    if (prompts or 0) + new > positions:
        raise CliError(
            f"evaluate.max_prompt_tokens={prompts} and evaluate.max_new_tokens={new} together exceed the {positions} "
            f"positions of {name}; make them smaller."
        )


def _work(plan: Plan, output: Path, args: argparse.Namespace, keep_models: bool) -> None:
    import os

    from sparsepo.experiments.pipeline.folder import ExperimentFolder
    from sparsepo.experiments.pipeline.working import Work, work_through

    from .experiment_commands import InProcess

    if args.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that share cores
    started = ExperimentFolder(output).now()
    work = Work(plan, str(output), InProcess(), args.stale_after, args.may_execute, keep_models, started)
    work_through(work, args.jobs)


def _report(recipe: Recipe, plan: Plan, output: Path) -> int:
    from sparsepo.experiments.pipeline.collecting import collect

    results = collect(recipe, plan, output)
    total = len(plan.runs())
    print(f"{len(results['runs'])} of {total} runs; tables in {output}/tables.md, page {output}/report.html")
    if results["missing"]:
        print(f"Missing: {', '.join(results['missing'])}; `sparsepo experiment status {output}` says why.")
    return int(bool(results["missing"]))


def show_status(args: argparse.Namespace) -> int:
    """Print. Returns 0."""
    from sparsepo.experiments.pipeline.folder import ago
    from sparsepo.experiments.pipeline.status import status_of

    found = status_of(args.folder, args.stale_after)
    if args.as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return 0
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    print(f"{found.task}, size {found.size}: {len(found.stages)} stages: {counts}")
    width = max(len(stage.name) for stage in found.stages)
    for stage in found.stages:
        took = "" if stage.seconds is None else f" ({ago(stage.seconds)})"
        print(f"  {stage.status:<8} {stage.name:<{width}}  {stage.details}{took}")
        if stage.status == "failed" and stage.log is not None:
            print(f"  {'':<8} {'':<{width}}  log: {stage.log}")
    return 0
