"""Reward against KL: curves of policies over their training, fronts, reward at matched KL, and tests of differences.

Every estimate is of means over prompts; intervals and tests come from a bootstrap over seeds and prompts that draws the
same seeds and prompts for every method, since methods share them. Where seeds share their prompts too, one draw of
prompts is for all of them: what a prompt does to every seed is not averaged away by more seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import percentile_interval, resampled_means
from .tilting import TiltedReference

Array = NDArray[np.float64]
Interval = tuple[float, float, float]  # estimate, and the ends of its 95 % interval
AREA_POINTS = 65  # budgets at which a front is evaluated for its area


@dataclass(frozen=True)
class Curve:
    """What one training run passed through.

    Args:
        rewards, kls: at several times of training, (times, prompts): of each prompt's response, or means over its responses.
        start: reward of the reference, from which every run starts at KL 0: its mean, or that of each prompt, (prompts,).
    """

    rewards: Array
    kls: Array
    start: float | Array

    def __post_init__(self) -> None:
        if self.rewards.shape != self.kls.shape or self.rewards.ndim != 2 or not self.rewards.size:
            raise ValueError(
                f"rewards {self.rewards.shape} and kls {self.kls.shape} must both be (times, prompts), not empty."
            )
        if np.ndim(self.start) and np.shape(self.start) != self.rewards.shape[1:]:
            raise ValueError(f"start has shape {np.shape(self.start)}; give one number, or one of each prompt.")

    def started_at(self, prompts: NDArray[np.int64] | None = None) -> float:
        """The reference's mean reward over these prompts."""
        start = np.asarray(self.start, dtype=np.float64)
        return float(start if not start.ndim else start.mean() if prompts is None else start[prompts].mean())

    def points(self, prompts: NDArray[np.int64] | None = None) -> tuple[Array, Array]:
        """(KL, reward) at each time and at the start, (times + 1,) each, over these prompts."""
        chosen = slice(None) if prompts is None else prompts
        kl, reward = self.kls[:, chosen].mean(1), self.rewards[:, chosen].mean(1)
        return np.concatenate([[0.0], kl]), np.concatenate([[self.started_at(prompts)], reward])


def reward_within(kl: ArrayLike, reward: ArrayLike, budget: ArrayLike) -> Array:
    """The largest reward that a run reaches at a KL of at most each budget.

    Between two times the reward is taken to be linear in √KL, as the optimum's nearly is for small KL. A run that never
    gets to the budget counts with the best that it has: a policy of less KL keeps to the budget too.

    Args:
        kl, reward: in the order of training, the start first, (times,).
        budget: nats; one number, or (budgets,).

    Returns:
        The reward at each budget, of the budget's shape; −∞ where even the start has more KL.
    """
    root, values = np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0)), np.asarray(reward, dtype=np.float64)
    limit = np.sqrt(np.asarray(budget, dtype=np.float64))[..., None]
    best: Array = np.where(root <= limit, values, -np.inf).max(-1)
    if len(root) > 1:
        before, after = root[:-1], root[1:]
        crosses = (after - limit) * (before - limit) < 0
        share = (limit - before) / np.where(after == before, 1.0, after - before)
        between = values[:-1] + share * (values[1:] - values[:-1])
        best = np.maximum(best, np.where(crosses, between, -np.inf).max(-1))
    return best


def best_within(curves: Sequence[Curve], budgets: ArrayLike, prompts: NDArray[np.int64] | None = None) -> Array:
    """:func:`reward_within` of the best of several runs (a method's β, say) at each budget."""
    found: Array = np.max([reward_within(*curve.points(prompts), budgets) for curve in curves], axis=0)
    return found


def pareto_front(kl: ArrayLike, reward: ArrayLike) -> list[int]:
    """Places of the points that no other one beats (no more KL and more reward, or less KL and no less reward), by KL.

    Of equal points the first counts.
    """
    x, y = np.asarray(kl, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    front: list[int] = []
    for place in np.lexsort((np.arange(len(x)), -y, x)):
        if not front or y[place] > y[front[-1]]:
            front.append(int(place))
    return front


def area_budgets(limit: float) -> Array:
    """The budgets at which a front's area up to ``limit`` nats is summed."""
    if not limit > 0:
        raise ValueError(f"The area up to a KL of {limit} nats is none; give a limit above 0.")
    return np.linspace(0.0, limit, AREA_POINTS)


def mean_height(values: Array) -> float:
    """The area under values on an even grid, over its width: by the trapezoid rule."""
    return float((values[..., :-1] + values[..., 1:]).mean() / 2)


def bootstrap_mean(
    groups: Sequence[ArrayLike], draws: int = 1000, seed: int = 0, *, shared_prompts: bool = True
) -> Interval:
    """Mean of the groups' means with a 95 % interval: groups (seeds) and values (prompts) are drawn.

    With ``shared_prompts`` the groups hold the same prompts in the same order, and a resample draws prompts once for all
    of them (Owen 2007, "The pigeonhole bootstrap"); else it draws them anew within each drawn group. One group says
    nothing of the spread between groups: its interval is over its values alone. With few groups intervals are somewhat
    narrow, by √((n − 1)/n).

    Raises:
        ValueError: no groups, an empty one, or shared prompts in groups of different sizes.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(not array.size for array in arrays):
        raise ValueError("There are no values to average.")
    rng = np.random.default_rng(seed)
    estimate = float(np.mean([array.mean() for array in arrays]))
    drawn = rng.integers(len(arrays), size=(draws, len(arrays)))
    if shared_prompts:
        _shared_size({array.size for array in arrays})
        means = resampled_means(np.stack(arrays), draws, rng).T  # (draws, groups)
        return _interval(estimate, np.take_along_axis(means, drawn, axis=1).mean(1))
    total = np.zeros(draws)
    for slot in range(len(arrays)):
        for place, array in enumerate(arrays):
            rows = np.flatnonzero(drawn[:, slot] == place)
            total[rows] += resampled_means(array, len(rows), rng)
    return _interval(estimate, total / len(arrays))


@dataclass(frozen=True)
class Comparison:
    """A method's reward within a KL budget, or its mean over all budgets up to a limit.

    Args:
        reward: estimate and 95 % interval.
        difference: from the baseline.
        p_value: two-sided, of no difference, by the bootstrap; None for the baseline.
        p_adjusted: Holm's, over the methods compared with the baseline at this budget.
        share: of the optimum's gain over the reference; None where the optimum is not known.
    """

    reward: Interval
    difference: Interval
    p_value: float | None
    p_adjusted: float | None
    share: Interval | None = None


@dataclass(frozen=True)
class Comparisons:
    """By KL budget and method, and by method the mean over budgets up to ``limit`` (None where none was given)."""

    within: dict[float, dict[str, Comparison]]
    area: dict[str, Comparison] | None
    seeds: tuple[int, ...]


def compare(
    curves: Mapping[str, Mapping[int, Sequence[Curve]]],
    budgets: Sequence[float],
    baseline: str,
    *,
    optima: Mapping[int, TiltedReference] | None = None,
    limit: float | None = None,
    draws: int = 1000,
    seed: int = 0,
    shared_prompts: bool = True,
) -> Comparisons:
    """Reward within KL budgets by method, averaged over seeds.

    The bootstrap draws seeds and prompts with replacement, the same draw for every method, since methods share a seed's
    prompts; see :func:`bootstrap_mean`, also for few seeds. Where a method has several runs a seed, the best one at a
    budget counts, which flatters a method that has more of them.

    Args:
        curves: method → seed → its runs; every method needs the same seeds, and every run the same prompts of a seed.
        budgets: KL in nats.
        baseline: the method that differences are taken from.
        optima: seed → the optimal policies of that seed's reference, for the share of their gain.
        limit: mean over all budgets from 0 to this one.
        draws: of the bootstrap.
        seed: of its random numbers.
        shared_prompts: all seeds were judged on the same prompts in the same order; False: each on its own.

    Raises:
        ValueError: a method lacks a seed, numbers of prompts differ (with shared prompts also between seeds), the
            baseline is missing, or there is nothing to gain.
    """
    seeds = _checked_seeds(curves, baseline)
    names = list(curves)
    sizes = {s: curves[names[0]][s][0].rewards.shape[1] for s in seeds}
    common = _shared_size(set(sizes.values())) if shared_prompts else None
    grid = np.array([*budgets, *(area_budgets(limit) if limit is not None else [])], dtype=np.float64)
    count = len(budgets)
    best = None if optima is None else {s: [_gain(optima[s], budget) for budget in budgets] for s in seeds}
    rng = np.random.default_rng(seed)

    def measured(drawn: Sequence[int], resample: bool) -> Array:
        """(2, methods, budgets + 1): reward, and share of the optimum's gain; the last column is the area."""
        result = np.zeros((2, len(names), count + 1))
        prompts: NDArray[np.int64] | None = rng.integers(common, size=common) if resample and common else None
        for s in drawn:
            if resample and common is None:
                prompts = rng.integers(sizes[s], size=sizes[s])
            for j, name in enumerate(names):
                values = best_within(curves[name][s], grid, prompts)
                result[0, j, :count] += values[:count]
                if limit is not None:
                    result[0, j, count] += mean_height(values[count:])
                if best is not None:
                    result[1, j, :count] += (values[:count] - curves[name][s][0].started_at(prompts)) / best[s]
        return result / len(drawn)

    estimate = measured(seeds, resample=False)
    sampled = np.stack([measured(rng.choice(seeds, size=len(seeds)).tolist(), resample=True) for _ in range(draws)])
    base = names.index(baseline)

    def column(place: int, has_share: bool) -> dict[str, Comparison]:
        return _column(names, base, estimate[..., place], sampled[..., place], has_share)

    within = {budget: column(place, best is not None) for place, budget in enumerate(budgets)}
    return Comparisons(within, None if limit is None else column(count, False), tuple(seeds))


def _column(names: Sequence[str], base: int, estimate: Array, sampled: Array, has_share: bool) -> dict[str, Comparison]:
    """Comparisons at one budget: estimates (2, methods) and draws (draws, 2, methods)."""
    differences = sampled[:, 0] - sampled[:, 0, base : base + 1]
    p_values = {j: _p_value(differences[:, j]) for j in range(len(names)) if j != base}
    adjusted = holm(p_values)
    return {
        name: Comparison(
            _interval(estimate[0, j], sampled[:, 0, j]),
            _interval(estimate[0, j] - estimate[0, base], differences[:, j]),
            p_values.get(j),
            adjusted.get(j),
            _interval(estimate[1, j], sampled[:, 1, j]) if has_share else None,
        )
        for j, name in enumerate(names)
    }


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """Holm's adjustment: the chance of any false finding among all of them stays below what is read off."""
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, place in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _checked_seeds(curves: Mapping[str, Mapping[int, Sequence[Curve]]], baseline: str) -> list[int]:
    if baseline not in curves:
        raise ValueError(f"baseline={baseline!r} is none of the methods {', '.join(curves)}.")
    seeds = sorted({s for own in curves.values() for s in own})
    for name, own in curves.items():
        if missing := [s for s in seeds if not own.get(s)]:
            raise ValueError(f"{name} has no run of seed {', '.join(map(str, missing))}; run it first.")
    for s in seeds:
        sizes = {curve.rewards.shape[1] for own in curves.values() for curve in own[s]}
        if len(sizes) > 1:
            raise ValueError(f"Runs of seed {s} were judged on different numbers of prompts: {sorted(sizes)}.")
    return seeds


def _shared_size(sizes: set[int]) -> int:
    if len(sizes) > 1:
        raise ValueError(
            f"Seeds cannot share prompts where they have {sorted(sizes)} of them: give shared_prompts=False."
        )
    return next(iter(sizes))


def _p_value(differences: Array) -> float:
    """Twice the share of draws on the rarer side of zero; one more draw is counted on each, so that it is never zero."""
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))


def _gain(optimum: TiltedReference, budget: float) -> float:
    gain = optimum.at_kl(budget).reward - optimum.reference_reward
    if gain <= 0:
        raise ValueError(f"The optimum gains nothing at KL {budget}: rewards of the reference's samples are all alike.")
    return gain


def _interval(estimate: float, values: Array) -> Interval:
    return (float(estimate), *percentile_interval(values))
