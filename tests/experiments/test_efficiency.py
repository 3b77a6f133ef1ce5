"""Shares of the optimum at a policy's own KL."""

from __future__ import annotations

import numpy as np
import pytest

from sparsepo.evaluation.frontier import Curve
from sparsepo.evaluation.tilting import TiltedReference
from sparsepo.experiments.efficiency import OptimumCurve, efficiencies, efficiency_table

SEEDS = (1, 2, 3)


def optima() -> dict[int, TiltedReference]:
    return {seed: TiltedReference(np.random.default_rng(seed).random((80, 64))) for seed in SEEDS}


def run(optimum: TiltedReference, share: float, kl: float, noise: float, seed: int) -> Curve:
    """A run that ends at ``kl`` with this share of what is possible there."""
    rng = np.random.default_rng(seed)
    level = optimum.reference_reward + share * (optimum.at_kl(kl).reward - optimum.reference_reward)
    rewards = np.full((4, 300), level) + rng.normal(0, noise, (1, 300))
    return Curve(rewards, np.full((4, 300), kl), optimum.reference_reward)


def test_the_optimum_has_all_of_itself() -> None:
    optimum = optima()[1]
    curve = OptimumCurve(optimum)
    for kl in (0.05, 0.3, 0.8 * curve.limit):
        assert curve.share(np.array([kl]), np.array([optimum.at_kl(kl).reward]))[0] == pytest.approx(1, abs=0.01)
    assert curve.share(np.array([0.3]), np.array([optimum.reference_reward]))[0] == 0
    assert np.isnan(curve.share(np.array([2 * curve.limit]), np.array([0.9]))[0])


def test_methods_at_different_kl_compare_by_their_share() -> None:
    best = optima()
    curves = {
        "DPO": {s: run(best[s], 0.7, 0.5, 0.02, s) for s in SEEDS},
        "less far": {s: run(best[s], 0.9, 0.2, 0.02, s) for s in SEEDS},
        "too far": {s: Curve(np.ones((4, 300)), np.full((4, 300), 50.0), 0.5) for s in SEEDS},
    }
    found = efficiencies(curves, best, ["DPO", "absent"], draws=100)
    assert found["DPO"].share[0] == pytest.approx(0.7, abs=0.02)
    assert found["less far"].reward[0] < found["DPO"].reward[0]
    estimate, low, high = found["less far"].differences["DPO"]
    assert estimate == pytest.approx(0.2, abs=0.03)
    assert 0 < low < estimate < high
    assert list(found["less far"].differences) == ["DPO"]
    assert np.isnan(found["too far"].share[0])
    table = efficiency_table(found)
    assert "farther than the samples show" in table
    assert table.count("\n") == 5
