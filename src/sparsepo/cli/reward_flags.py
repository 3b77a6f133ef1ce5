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
    "playground": "the known words of the playground's reviews",
}
_OPTIONS = ("output", "reads", "batch_size", "max_length")


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


def check_reward_flags(args: argparse.Namespace) -> None:
    """Refuse a reward that cannot be meant, before anything is loaded.

    Raises:
        CliError: unknown, or flags without a reward.
    """
    if args.reward is None:
        for name in _OPTIONS:
            if getattr(args, f"reward_{name}") is not None:
                raise CliError(f"--reward_{name} has no effect without --reward.")
        return
    from sparsepo.evaluation.rewards import check_reward

    check_reward(args.reward)


def reward_of(args: argparse.Namespace) -> Any:
    """The reward that the flags name, loaded; None without ``--reward``."""
    if args.reward is None:
        return None
    from sparsepo.evaluation.rewards import get_reward

    options = {name: value for name in _OPTIONS if (value := getattr(args, f"reward_{name}")) is not None}
    if args.reward.startswith(("classifier:", "regression:")) and getattr(args, "use_cpu", False):
        options["device"] = "cpu"
    return get_reward(args.reward, **options)
