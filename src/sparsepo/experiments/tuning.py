"""Successive halving: many settings on a small budget, the better part of them on a larger one, and so on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Rung(Generic[T]):
    """What was tried on one budget: candidates with their scores, the best first."""

    budget: int
    scored: list[tuple[T, float]]


def successive_halving(
    candidates: Sequence[T],
    budgets: Sequence[int],
    evaluate: Callable[[Sequence[T], int], Sequence[float]],
    keep: float = 0.5,
) -> list[Rung[T]]:
    """Find a good candidate.

    Args:
        candidates: what to choose from.
        budgets: rising budgets, such as numbers of steps.
        evaluate: all candidates of a rung on a budget → their scores, more being better; not-a-number is worst.
        keep: share of a rung that goes on, at least one.

    Returns:
        The rungs; the winner is the first of the last one.

    Raises:
        ValueError: no candidates or budgets, budgets that do not rise, or ``keep`` outside (0, 1).
    """
    if not candidates or not budgets:
        raise ValueError("Successive halving needs candidates and budgets.")
    if list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets={list(budgets)!r} must rise.")
    if not 0 < keep < 1:
        raise ValueError(f"keep={keep!r} must lie in (0, 1).")
    rungs: list[Rung[T]] = []
    going = list(candidates)
    for budget in budgets:
        scores = evaluate(going, budget)
        order = sorted(range(len(going)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i], reverse=True)
        rungs.append(Rung(budget, [(going[i], float(scores[i])) for i in order]))
        going = [going[i] for i in order[: max(1, math.ceil(keep * len(order)))]]
    return rungs
