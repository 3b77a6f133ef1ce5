"""Scores of the leaderboard: chance is 0, everything right is 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .benchmarks import BENCHMARKS, Benchmark, Part
from .estimates import Estimate, mean_of, ratio
from .results import TaskResult

Results = Mapping[str, TaskResult]


def normalise(value: float, chance: float) -> float:
    """100 × (value − chance) ÷ (1 − chance), and 0 below chance.

    Args:
        value: share of right answers.
        chance: what guessing gives.
    """
    return max(0.0, 100.0 * (value - chance) / (1.0 - chance))


def normalised(benchmark: Benchmark, results: Results) -> Estimate | None:
    """A benchmark's score, 0 to 100, with its standard error; None where a task of it is missing.

    Where a part lies below chance its score is 0, while its standard error is that of the raw score, scaled: the true score
    may lie above chance.
    """
    if any(task not in results for task in benchmark.tasks):
        return None
    if benchmark.pooled:
        pairs = [results[part.task].arrays(part.metric) for part in benchmark.parts]
        sums, counts = (np.concatenate([pair[place] for pair in pairs]) for place in (0, 1))
        return _clipped(ratio(benchmark.name, sums, counts), benchmark.parts[0])
    return mean_of([_clipped(raw(results[part.task], part.metric), part) for part in benchmark.parts])


def _clipped(raw_score: Estimate, part: Part) -> Estimate:
    scale = 100.0 / (1.0 - part.chance)
    influence = {name: scale * own for name, own in raw_score.influence.items()}
    return Estimate(normalise(raw_score.value, part.chance), influence)


def raw(result: TaskResult, metric: str) -> Estimate:
    """A task's metric as lm-eval reports it, with its standard error over documents."""
    return ratio(result.task, *result.arrays(metric))


def average(results: Results, benchmarks: Sequence[Benchmark] = BENCHMARKS) -> Estimate | None:
    """The leaderboard's average of all six; None where one is missing."""
    scores = [normalised(benchmark, results) for benchmark in benchmarks]
    kept = [score for score in scores if score is not None]
    return mean_of(kept) if len(kept) == len(scores) else None
