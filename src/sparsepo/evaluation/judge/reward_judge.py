"""A reward model as judge, offline: of two answers the one with the higher reward wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .comparisons import Comparison
from .questions import Verdict

# prompts (texts or messages) and answers, as many of each → a reward each; sparsepo.evaluation.rewards.get_reward gives one
Scorer = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


def judge_by_rewards(comparisons: Sequence[Comparison], scorer: Scorer, tie_margin: float = 0.0) -> list[Verdict]:
    """Verdicts of a reward model. An answer that stands in several comparisons of a prompt is scored once.

    Args:
        comparisons: what to compare.
        scorer: gives rewards; called once with all answers.
        tie_margin: rewards at most so far apart are a tie.

    Raises:
        ValueError: the margin is negative; the scorer gives another number of rewards, or one that is no finite number.
    """
    if not (tie_margin >= 0 and math.isfinite(tie_margin)):
        raise ValueError(f"tie_margin={tie_margin:g} must be a number of at least zero.")
    given = {own.prompt: own.messages or own.prompt for own in comparisons}
    unique = list(dict.fromkeys((own.prompt, text) for own in comparisons for text in (own.candidate, own.baseline)))
    rewards = [float(value) for value in scorer([given[prompt] for prompt, _ in unique], [text for _, text in unique])]
    if len(rewards) != len(unique):
        raise ValueError(f"The reward model gave {len(rewards)} rewards for {len(unique)} answers.")
    for (prompt, text), reward in zip(unique, rewards, strict=True):
        if not math.isfinite(reward):
            raise ValueError(f"The reward model gave {reward} for the answer {text[:60]!r} to {prompt[:60]!r}.")
    found = dict(zip(unique, rewards, strict=True))
    verdicts = []
    for own in comparisons:
        margin = found[own.prompt, own.candidate] - found[own.prompt, own.baseline]
        score = 0.5 if abs(margin) <= tie_margin else float(margin > 0)
        verdicts.append(Verdict(own, score, margin=margin))
    return verdicts
