"""Reward at matched KL: curves of policies over their training, interpolated, with a bootstrap over prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsepo.evaluation.tilting import TiltedReference

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """What one training run passed through.

    Args:
        rewards, kls: of each response, (times, prompts), at several times of training.
        start: reward of the reference, from which every run starts at KL 0.
    """

    rewards: Array
    kls: Array
    start: float

    def __post_init__(self) -> None:
        if self.rewards.shape != self.kls.shape or self.rewards.ndim != 2 or not self.rewards.size:
            raise ValueError(
                f"rewards {self.rewards.shape} and kls {self.kls.shape} must both be (times, prompts), not empty."
            )

    def points(self, prompts: NDArray[np.int64] | None = None) -> tuple[Array, Array]:
        """(KL, reward) at each time and at the start, (times + 1,) each, over these prompts."""
        chosen = slice(None) if prompts is None else prompts
        kl, reward = self.kls[:, chosen].mean(1), self.rewards[:, chosen].mean(1)
        return np.concatenate([[0.0], kl]), np.concatenate([[self.start], reward])


def reward_within(kl: ArrayLike, reward: ArrayLike, budget: float) -> float:
    """The largest reward that a run reaches at a KL of at most ``budget`` nats.

    Between two times the reward is taken to be linear in √KL, as the optimum's nearly is for small KL. A run that never
    gets to the budget counts with the best that it has: a policy of less KL keeps to the budget too.

    Args:
        kl, reward: in the order of training, the start first, (times,).
        budget: nats.
    """
    root, values = np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0)), np.asarray(reward, dtype=np.float64)
    limit = np.sqrt(budget)
    best = float(values[0]) if root[0] <= limit else -np.inf
    for i in range(1, len(root)):
        if root[i] <= limit:
            best = max(best, float(values[i]))
        if (root[i] - limit) * (root[i - 1] - limit) < 0:
            share = (limit - root[i - 1]) / (root[i] - root[i - 1])
            best = max(best, float(values[i - 1] + share * (values[i] - values[i - 1])))
    return best


@dataclass(frozen=True)
class Comparison:
    """A method at one KL budget: estimate and 95 % interval of the reward, of its share of the optimum's gain over the
    reference, and of its difference from the baseline."""

    reward: tuple[float, float, float]
    share: tuple[float, float, float]
    difference: tuple[float, float, float]


def compare(
    curves: Mapping[str, Mapping[int, Curve]],
    optima: Mapping[int, TiltedReference],
    budget: float,
    baseline: str,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Reward within a KL budget by method, averaged over seeds.

    The bootstrap draws seeds, then prompts within each, with replacement, the same draw for every method, since methods
    share a seed's model, pairs and prompts. With few seeds such intervals are somewhat narrow (by √((n−1)/n)).

    Args:
        curves: method → seed → curve; every method needs every seed of ``optima``.
        optima: seed → the optimal policies of that seed's reference.
        budget: KL in nats.
        baseline: the method that differences are taken from.
        draws: of the bootstrap.
        seed: of its random numbers.

    Raises:
        ValueError: a method lacks a seed, or the baseline is missing.
    """
    seeds = sorted(optima)
    if baseline not in curves:
        raise ValueError(f"baseline={baseline!r} is none of the methods {', '.join(curves)}.")
    for name, own in curves.items():
        if missing := [s for s in seeds if s not in own]:
            raise ValueError(f"{name} has no run of seed {', '.join(map(str, missing))}; run it first.")
    names = list(curves)
    best = {s: _gain(optima[s], budget) for s in seeds}
    rng = np.random.default_rng(seed)

    def measured(drawn: Sequence[int], resample: bool) -> Array:
        """(2, methods): reward, and share of the optimum's gain."""
        rewards, shares = np.zeros((len(drawn), len(names))), np.zeros((len(drawn), len(names)))
        for i, s in enumerate(drawn):
            count = curves[names[0]][s].rewards.shape[1]
            prompts: NDArray[np.int64] | None = np.asarray(rng.integers(count, size=count)) if resample else None
            for j, name in enumerate(names):
                curve = curves[name][s]
                rewards[i, j] = reward_within(*curve.points(prompts), budget)
                shares[i, j] = (rewards[i, j] - curve.start) / best[s]
        return np.stack([rewards.mean(0), shares.mean(0)])

    estimate = measured(seeds, resample=False)
    sampled = np.stack([measured(rng.choice(seeds, size=len(seeds)).tolist(), resample=True) for _ in range(draws)])
    base = names.index(baseline)
    result = {}
    for j, name in enumerate(names):
        difference = sampled[:, 0, j] - sampled[:, 0, base]
        result[name] = Comparison(
            _interval(estimate[0, j], sampled[:, 0, j]),
            _interval(estimate[1, j], sampled[:, 1, j]),
            _interval(estimate[0, j] - estimate[0, base], difference),
        )
    return result


def _gain(optimum: TiltedReference, budget: float) -> float:
    gain = optimum.at_kl(budget).reward - optimum.reference_reward
    if gain <= 0:
        raise ValueError(
            f"The optimum gains nothing at KL {budget}: the rewards of the reference's samples are all alike."
        )
    return gain


def _interval(estimate: float, values: Array) -> tuple[float, float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(estimate), float(low), float(high)
