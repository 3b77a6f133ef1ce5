"""``sparsepo frontier``: reward against KL of runs, checkpoint by checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .base import CliError
from .content_flags import add_content_flags, content_filter_of
from .loading_flags import add_loading_flags
from .reward_flags import add_reward_flags, check_reward_flags, reward_of
from .saved_runs import check_output_folder

_DESCRIPTION = """Samples every checkpoint of every run on held-out prompts, scores the samples, measures how far the
policy is from its reference on them, and shows reward against KL: plots, fronts, and methods at the same KL.

A run is a folder of `sparsepo train` (checkpoints, objective, beta, seed, mask and reference come from it), NAME=FOLDER to
name its method, or NAME=FOLDER:REF for any other model and its reference. Runs of one method and other seeds are averaged.

What is read off:
  the front      for each KL the largest reward that a method reaches; higher is better, at the left it is cheaper
  within K nats  the reward at matched KL, with the difference from the baseline, a 95 % interval and a p-value
  mean up to K   the area under that curve over its width: one number for the whole range
  masked KL      what the run's KL mask leaves of the KL: small is no merit if the unmasked KL is large
A reward that rises while completions get longer, or stop ending, is worth a look at the samples.

Every point is kept in OUTPUT/points with its samples; the same command goes on after an interruption, and with further runs
only measures what is new."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``frontier``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "frontier",
        help="reward against KL of runs, checkpoint by checkpoint, at matched KL",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="FOLDER, NAME=FOLDER or NAME=FOLDER:REF")
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="held-out prompts: a .txt file, or rows with a prompt"
    )
    parser.add_argument("--split", help="split of the prompts, as in 'test' or 'train[:200]'")
    parser.add_argument("--limit", type=int, help="only the first prompts")
    add_reward_flags(parser, required=True)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the points and of the report")
    parser.add_argument("--checkpoints", default="all", help="all, last, or at most so many (default: %(default)s)")
    parser.add_argument("--ref_model", help="reference of runs that name none")
    _add_sampling(parser)
    _add_statistics(parser)
    add_content_flags(parser)
    parser.set_defaults(func=run)
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (at temperature 1, since the KL is that of the policy itself)")
    group.add_argument("--samples", type=int, default=1, help="completions a prompt (default: %(default)s)")
    group.add_argument(
        "--reference_samples",
        type=int,
        metavar="N",
        help="of the reference (default: as --samples); 64 also show the best that any policy can do",
    )
    group.add_argument("--max_new_tokens", type=int, default=64, help="longest completion (default: %(default)s)")
    group.add_argument("--max_prompt_length", type=int, help="keep only the last tokens of a prompt")
    group.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    group.add_argument("--batch_size", type=int, default=64, help="completions at a time (default: %(default)s)")
    group.add_argument("--pairs", metavar="FILE", help="also KL(ref ‖ π) on these preference pairs")
    group.add_argument("--pairs_limit", type=int, default=256, help="at most so many pairs (default: %(default)s)")
    add_loading_flags(group, "float32")


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is read off")
    group.add_argument(
        "--kl",
        choices=("exact", "monte_carlo"),
        default="exact",
        help="of fronts and budgets: exact, each token's KL over the whole vocabulary; monte_carlo, log-ratios of the "
        "samples (default: %(default)s)",
    )
    group.add_argument("--budgets", type=float, nargs="+", metavar="K", help="KL budgets in nats")
    group.add_argument("--max_kl", type=float, help="limit of the area (default: what every method reaches)")
    group.add_argument(
        "--baseline", metavar="NAME", help="method that others are compared with (default: DPO, or the first)"
    )
    group.add_argument("--draws", type=int, default=1000, help="of the bootstrap (default: %(default)s)")
    group.add_argument(
        "--show", type=int, default=3, help="prompts whose completions stand on the page (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, summarise, write. Returns 0."""
    from rich.console import Console

    from sparsepo.data import load_prompts
    from sparsepo.data.content import content_notice, shown_text
    from sparsepo.evaluation.frontier_summary import SummarySettings, summarise
    from sparsepo.inspection.frontier_page import write_frontier

    from .frontier_measuring import Measuring, settings_of
    from .frontier_runs import find_runs
    from .progress import quiet_loading
    from .tables import say

    _check(args)
    words = content_filter_of(args)
    quiet_loading()
    runs = find_runs(args.runs, args.ref_model, args.checkpoints)
    if args.baseline is not None and args.baseline not in {run.method for run in runs}:
        raise CliError(
            f"--baseline {args.baseline}: the methods are {', '.join(dict.fromkeys(r.method for r in runs))}."
        )
    console = Console()
    prompts, left_out = load_prompts(args.prompts, args.split, limit=args.limit)
    for what, count in left_out.items():
        say(console, f"{args.prompts}: {count:,} {what} left out")
    points = sum(len(run.checkpoints) for run in runs)
    say(console, f"{len(runs)} runs with {points} checkpoints, {len(prompts)} prompts × {args.samples} completions")
    measuring = Measuring(args, prompts, reward_of(args), console)
    references = {name: measuring.reference(name) for name in dict.fromkeys(run.reference for run in runs)}
    measured = [measuring.run(run) for run in runs]
    for note in measuring.notes():
        say(console, note)
    read_off = SummarySettings(args.kl, args.budgets, args.max_kl, args.baseline, args.draws)
    content = {
        "reward": args.reward,
        "prompts": len(prompts),
        **summarise(measured, references, read_off),
        "settings": {**settings_of(args), "runs": [_described(run) for run in runs]},
    }
    content["notes"] = [*measuring.notes(), *content["notes"]]
    samples = _samples(args.show, measured, prompts)
    notice = content_notice([f"{row[4]} {row[5]}" for row in samples], words)
    samples = [[*row[:4], shown_text(row[4], words), shown_text(row[5], words), row[6]] for row in samples]
    files = write_frontier(content, Path(args.output), samples, notice)
    _print(content, console)
    say(console, f"wrote {', '.join(files)} in {args.output}")
    return 0


def _described(run: Any) -> dict[str, Any]:
    own = {name: getattr(run, name) for name in ("method", "beta", "seed", "folder", "reference")}
    return {**own, "steps": [step for step, _ in run.checkpoints]}


def _check(args: argparse.Namespace) -> None:
    check_output_folder(args.output)
    check_reward_flags(args)
    if args.checkpoints not in ("all", "last") and not (args.checkpoints.isdigit() and int(args.checkpoints) >= 1):
        raise CliError(f"--checkpoints {args.checkpoints}: write all, last, or a number of at least 1.")
    least = {"samples": 1, "reference_samples": 1, "max_new_tokens": 1, "max_prompt_length": 1, "batch_size": 1}
    for name, value in {**least, "pairs_limit": 1, "limit": 1, "draws": 20, "show": 0}.items():
        given = getattr(args, name)
        if given is not None and given < value:
            raise CliError(f"--{name} {given}: must be at least {value}.")
    for name, values in (("budgets", args.budgets), ("max_kl", None if args.max_kl is None else [args.max_kl])):
        if any(not value > 0 for value in values or ()):
            raise CliError(f"--{name} {' '.join(map(str, values or ()))}: a KL budget must be above 0 nats.")
    if not Path(args.prompts).expanduser().exists() and Path(args.prompts).suffix:
        raise CliError(f"--prompts {args.prompts}: there is no such file.")
    if args.pairs is not None and Path(args.pairs).suffix and not Path(args.pairs).expanduser().exists():
        raise CliError(f"--pairs {args.pairs}: there is no such file.")


def _samples(show: int, measured: Any, prompts: Any) -> list[list[str]]:
    """Rows for the page: the first completions of the last checkpoint of each method and β, of its first seed."""
    from sparsepo.inspection.frontier_page import shown_beta

    seen: set[Any] = set()
    rows = []
    for run in measured:
        if (run.method, run.beta) in seen:
            continue
        seen.add((run.method, run.beta))
        point = run.points[-1]
        for number in range(min(show, len(prompts))):
            prompt = prompts[number]
            asked = prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)
            reward = f"{point.rewards[number, 0]:.3f}"
            place = [run.method, shown_beta(run.beta), str(run.seed), str(run.steps[-1])]
            rows.append([*place, asked, point.texts[number][0], reward])
    return rows


def _print(content: dict[str, Any], console: Any) -> None:
    from sparsepo.inspection.document import number, with_interval
    from sparsepo.inspection.frontier_page import shown_beta

    from .tables import say, text_table

    fronts = {place for own in content["methods"].values() for place in own["front"]}
    kl = content["kl"]
    rows = [
        [
            f"{point['method']}, β {shown_beta(point['beta'])}",
            str(point["step"]),
            with_interval(point["reward"]),
            with_interval(point[kl]),
            "*" if place in fronts else "",
        ]
        for place, point in enumerate(content["points"])
    ]
    title = f"reward {content['reward']} (*: on its method's front)"
    console.print(text_table(title, ["method", "step", "reward", f"KL, {kl.replace('_', ' ')}", ""], rows))
    comparison = content["comparison"]
    if comparison is not None:
        base = comparison["baseline"]
        for own in comparison["within"]:
            rows = [
                [name, with_interval(it["reward"]), with_interval(it["difference"]), number(it["p_adjusted"])]
                for name, it in own["methods"].items()
            ]
            console.print(
                text_table(f"within {own['budget']:g} nats", ["method", "reward", f"minus {base}", "p (Holm)"], rows)
            )
    for note in content["notes"]:
        say(console, f"note: {note}")
