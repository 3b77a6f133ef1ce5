"""Interpolation at matched KL, the bootstrap, and successive halving."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsepo.evaluation.tilting import TiltedReference
from sparsepo.experiments.frontier import Curve, compare, reward_within
from sparsepo.experiments.intervals import over_seeds
from sparsepo.experiments.matched import score
from sparsepo.experiments.tuning import successive_halving


def test_reward_within_a_budget() -> None:
    kl, reward = [0.0, 0.04, 0.16], [0.5, 0.6, 0.7]
    assert reward_within(kl, reward, 0.04) == pytest.approx(0.6)
    assert reward_within(kl, reward, 0.09) == pytest.approx(0.65)  # half-way in √KL
    assert reward_within(kl, reward, 1.0) == 0.7  # never reached: the best that there is
    assert reward_within(kl, reward, 0.0) == 0.5
    assert reward_within([0, 0.04, 0.16], [0.5, 0.8, 0.6], 0.16) == 0.8  # less KL keeps to the budget too
    assert reward_within([0, 0.16, 0.04], [0.5, 0.7, 0.8], 0.09) == pytest.approx(0.8)  # a run may come back


def test_score_averages_over_budgets() -> None:
    result = {
        "policy": [{"kl": {"mean": 0.1}, "reward": {"mean": 0.6}}, {"kl": {"mean": 9.0}, "reward": {"mean": 0.6}}]
    }
    assert score(result, 0.5) == pytest.approx(0.6)


def curves(rng: np.random.Generator, level: float, noise: float, seeds: range) -> dict[int, Curve]:
    """Runs that reach ``level`` at KL .25 and nothing more."""
    kls = np.stack([np.full(200, 0.09), np.full(200, 0.25)])
    made = {}
    for seed in seeds:
        means = np.array([[(level + 0.5) / 2], [level]])
        made[seed] = Curve(means + rng.normal(0, 0.1, (2, 200)) + rng.normal(0, noise), kls, 0.5)
    return made


def test_comparison_finds_differences_and_their_uncertainty() -> None:
    rng = np.random.default_rng(0)
    seeds = range(5)
    optima = {seed: TiltedReference(rng.random((50, 64))) for seed in seeds}
    methods = {"DPO": curves(rng, 0.6, 0.002, seeds), "better": curves(rng, 0.65, 0.002, seeds)}
    found = compare(methods, optima, 0.25, "DPO", draws=200)
    assert found["DPO"].difference == (0.0, 0.0, 0.0)
    estimate, low, high = found["better"].difference
    assert low < 0.05 < high
    assert low > 0
    assert estimate == pytest.approx(0.05, abs=0.02)
    gain = np.mean([optima[s].at_kl(0.25).reward - optima[s].reference_reward for s in seeds])
    assert found["better"].share[0] == pytest.approx(0.15 / gain, abs=0.1)
    noisy = {"DPO": curves(rng, 0.6, 0.1, seeds), "better": curves(rng, 0.65, 0.1, seeds)}
    wide = compare(noisy, optima, 0.25, "DPO", draws=200)["better"].difference
    assert wide[2] - wide[1] > 3 * (high - low)  # seeds that differ are seen
    with pytest.raises(ValueError, match="no run of seed 4"):
        compare({"DPO": methods["DPO"], "x": {s: methods["DPO"][s] for s in range(4)}}, optima, 0.25, "DPO", draws=2)
    with pytest.raises(ValueError, match="baseline='SFT'"):
        compare(methods, optima, 0.25, "SFT", draws=2)


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
