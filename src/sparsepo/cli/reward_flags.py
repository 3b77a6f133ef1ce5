"""The flags that name a reward, for every command that scores completions."""

from __future__ import annotations

import argparse
from typing import Any

from .base import CliError

# repeated from evaluation/rewards.py, which takes seconds to import (a test compares them)
REWARD_KINDS = {
    "classifier:MODEL[:LABEL]": "probability of a class by a sequence classifier (LABEL: POSITIVE unless given)",
    "regression:MODEL": "the number of a reward model, as `sparsepo reward-model` trains it",
    "lexicon:ZIP[,ZIP]": "σ(positive − negative words) of VADER's or the opinion lexicon's zip file",
    "code-tests:BENCHMARK:FILE[:PROMPT]": "1 where a program passes its problem's tests, run in a sandbox",
    "playground": "the known words of the playground's reviews",
}
_OPTIONS = ("output", "reads", "batch_size", "max_length", "partial")


def add_reward_flags(parser: argparse.ArgumentParser, required: bool) -> None:
    """``--reward SPEC`` and how it reads texts."""
    parser.add_argument(
        "--reward", required=required, metavar="SPEC", help="what scores completions: " + ", ".join(REWARD_KINDS)
    )
    parser.add_argument(
        "--reward_output", choices=("probability", "logit"), help="of a classifier (default: probability)"
    )
    parser.add_argument(
        "--reward_reads",
        choices=("both", "completion"),
        help="what a classifier or reward model reads: prompt and completion, or the completion (default: both, or as it "
        "was trained)",
    )
    parser.add_argument("--reward_batch_size", type=int, metavar="N", help="texts scored together (default: 32)")
    parser.add_argument(
        "--reward_max_length", type=int, metavar="N", help="tokens of a scored text; longer ones lose their beginning"
    )
    parser.add_argument(
        "--reward_partial",
        action="store_const",
        const=True,
        help="of code-tests: the share of the tests that pass, where not all do",
    )
    add_execution_consent(parser)


def add_execution_consent(parser: Any) -> None:
    """The flag without which no program of a model is run."""
    parser.add_argument(
        "--allow-code-execution",
        "--allow_code_execution",
        action="store_true",
        help="run programs that a model wrote, in the sandbox of docs/code.md",
    )


def check_reward_flags(args: argparse.Namespace) -> None:
    """Refuse a reward that cannot be meant, before anything is loaded.

    Raises:
        CliError: unknown, or flags without a reward.
    """
    if args.reward is None:
        for name in _OPTIONS:
            if getattr(args, f"reward_{name}") is not None:
                raise CliError(f"--reward_{name} has no effect without --reward.")
        if args.allow_code_execution:
            raise CliError("--allow-code-execution has no effect without --reward code-tests:….")
        return
    from sparsepo.evaluation.rewards import check_reward

    check_reward(args.reward)
    if args.reward.startswith("code-tests:"):
        from sparsepo.evaluation.sandbox import check_consent

        check_consent(args.allow_code_execution)
    elif args.allow_code_execution:
        raise CliError("--allow-code-execution has no effect without --reward code-tests:….")


def reward_of(args: argparse.Namespace) -> Any:
    """The reward that the flags name, loaded; None without ``--reward``."""
    if args.reward is None:
        return None
    from sparsepo.evaluation.rewards import get_reward

    options = {name: value for name in _OPTIONS if (value := getattr(args, f"reward_{name}")) is not None}
    if args.reward.startswith(("classifier:", "regression:")) and getattr(args, "use_cpu", False):
        options["device"] = "cpu"
    if args.reward.startswith("code-tests:"):
        options["allow_code_execution"] = args.allow_code_execution
    return get_reward(args.reward, **options)
