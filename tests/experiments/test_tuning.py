"""Scores of tuning, successive halving, and intervals over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsepo.experiments.intervals import over_seeds
from sparsepo.experiments.matched import score
from sparsepo.experiments.tuning import successive_halving


def test_score_averages_over_budgets() -> None:
    result = {
        "policy": [{"kl": {"mean": 0.1}, "reward": {"mean": 0.6}}, {"kl": {"mean": 9.0}, "reward": {"mean": 0.6}}]
    }
    assert score(result, 0.5) == pytest.approx(0.6)


def test_halving_keeps_the_better_half_and_counts_budgets() -> None:
    seen: list[tuple[int, list[int]]] = []

    def evaluate(tried, budget):
        seen.append((budget, list(tried)))
        return [math.nan if c == 9 else c * budget for c in tried]

    rungs = successive_halving([9, 1, 4, 2, 3], [10, 20, 40], evaluate)
    assert seen == [(10, [9, 1, 4, 2, 3]), (20, [4, 3, 2]), (40, [4, 3])]
    assert rungs[-1].scored[0] == (4, 160)
    assert rungs[0].scored[-1][0] == 9  # a run that failed never wins
    for bad in (([], [1], 0.5), ([1], [], 0.5), ([1], [2, 1], 0.5), ([1], [1], 1.0)):
        with pytest.raises(ValueError, match=r"needs|rise|keep"):
            successive_halving(bad[0], bad[1], evaluate, bad[2])


def test_interval_over_seeds_is_students() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = over_seeds(values)
    assert found.mean == 3.0
    assert found.half_width == pytest.approx(2.776 * np.std(values, ddof=1) / math.sqrt(5), rel=1e-3)
    assert over_seeds([2.0]).half_width is None
    assert over_seeds([2.0]).text() == "2.000"
    assert over_seeds(np.linspace(0, 1, 40).tolist()).half_width == pytest.approx(
        2.0227 * np.std(np.linspace(0, 1, 40), ddof=1) / math.sqrt(40), rel=5e-3
    )
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])
