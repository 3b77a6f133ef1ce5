"""The optimum by tilting, against distributions whose optimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from sparsepo.evaluation.tilting import TiltedReference

VALUES, LAW = np.array([0.1, 0.5, 0.9]), np.array([0.3, 0.5, 0.2])


def exact(eta: float) -> tuple[float, float]:
    weights = LAW * np.exp(eta * VALUES)
    tilted = weights / weights.sum()
    return float(tilted @ VALUES), float((tilted * np.log(tilted / LAW)).sum())


def samples(prompts: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(VALUES, size=(prompts, count), p=LAW)


@pytest.mark.parametrize("eta", [0.5, 2.0, 5.0])
def test_estimates_are_exact_within_their_stated_error(eta: float) -> None:
    point = TiltedReference(samples(2000, 32)).at(eta)
    reward, kl = exact(eta)
    assert abs(point.reward - reward) < 4 * point.reward_se
    assert abs(point.kl - kl) < 4 * point.kl_se
    assert point.reward_se < 0.01


def test_the_jackknife_removes_the_bias_of_few_samples() -> None:
    rewards = samples(20_000, 8)
    reward, kl = exact(3.0)
    weights = np.exp(3.0 * rewards)
    plain = float(((weights * rewards).sum(1) / weights.sum(1)).mean())
    point = TiltedReference(rewards).at(3.0)
    assert abs(point.reward - reward) < abs(plain - reward) / 4
    assert abs(point.kl - kl) < 0.005


def test_no_other_tilt_has_more_reward_at_its_kl() -> None:
    tilted = TiltedReference(samples(500, 200))
    point = tilted.at_kl(0.2)
    assert point.kl == pytest.approx(0.2, abs=1e-6)
    assert point.reward > tilted.reference_reward
    # any other policy on the same three outcomes
    rng = np.random.default_rng(1)
    best = max(
        float(p @ VALUES)
        for p in rng.dirichlet(LAW * 8, size=20_000)
        if (p * np.log(np.maximum(p, 1e-300) / LAW)).sum() <= 0.2
    )
    assert point.reward > best - 3 * point.reward_se


def test_edges() -> None:
    tilted = TiltedReference(samples(50, 16))
    assert tilted.at_kl(0.0).reward == pytest.approx(tilted.reference_reward)
    assert tilted.at(0.0).kl == pytest.approx(0.0, abs=1e-12)
    assert tilted.at(0.0).effective_samples == pytest.approx(16)
    assert not tilted.at(50.0).is_reliable
    with pytest.raises(ValueError, match="draw more"):
        tilted.at_kl(20.0)
    for bad in (np.ones(4), np.ones((4, 1)), np.array([[1.0, np.nan]])):
        with pytest.raises(ValueError, match=r"shape|finite"):
            TiltedReference(bad)
    for eta, kl in ((-1.0, None), (None, -1.0)):
        with pytest.raises(ValueError, match="at least 0"):
            tilted.at(eta) if eta is not None else tilted.at_kl(kl)
