"""How much of what is possible at its own KL a policy reaches: a comparison at matched KL without a common budget.

A run that ends a little above a budget counts, within that budget, with a point that it passed early, so reward within a
budget depends on where runs happen to end. Here each policy is held against the optimum at the KL that it has itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsepo.evaluation.bootstrap import percentile_interval
from sparsepo.evaluation.frontier import Array, Curve, Interval
from sparsepo.evaluation.tilting import TiltedReference

LAST_TIMES = 3  # of judging, which a cosine schedule leaves nearly alike: their mean has less noise
GRID = 48


@dataclass(frozen=True)
class Efficiency:
    """A method at the end of training: means over seeds, estimate and 95 % interval each.

    Args:
        kl: sequence KL, nats.
        reward: of the policy's samples.
        share: gain over the reference as a part of the optimum's gain at the same KL.
        differences: of the share from that of each baseline.
    """

    kl: Interval
    reward: Interval
    share: Interval
    differences: dict[str, Interval]


class OptimumCurve:
    """Reward of the optimum by KL, interpolated linearly in √KL.

    Args:
        optimum: of one seed's reference.
    """

    def __init__(self, optimum: TiltedReference) -> None:
        points = [optimum.at(0.0)]
        for eta in np.geomspace(0.05, 200, GRID):
            point = optimum.at(float(eta))
            if not point.is_reliable:
                break
            points.append(point)
        self.start = optimum.reference_reward
        self._kl = np.maximum.accumulate([max(point.kl, 0.0) for point in points])
        self._reward = np.array([point.reward for point in points])

    @property
    def limit(self) -> float:
        """The largest KL that the samples can show, nats."""
        return float(self._kl[-1])

    def share(self, kl: Array, reward: Array) -> Array:
        """(reward − reference) / (optimum at this KL − reference), elementwise; not-a-number beyond :attr:`limit`."""
        best = np.interp(np.sqrt(np.maximum(kl, 0)), np.sqrt(self._kl), self._reward)
        gain = np.where((kl > 0) & (kl <= self.limit), best - self.start, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((reward - self.start) / gain)


def efficiencies(
    curves: Mapping[str, Mapping[int, Curve]],
    optima: Mapping[int, TiltedReference],
    baselines: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Efficiency]:
    """Every method's share of the optimum's gain at the end of training.

    The bootstrap draws seeds, then prompts within each, with replacement, the same draw for every method.

    Args:
        curves: method → seed → curve.
        optima: seed → the optimal policies of that seed's reference.
        baselines: methods that differences are taken from; those that are not there are left out.
        draws: of the bootstrap.
        seed: of its random numbers.

    Returns:
        Methods without a share on every seed (a KL beyond what the reference's samples can show) have not-a-number there.
    """
    seeds, names = sorted(optima), list(curves)
    best = {s: OptimumCurve(optima[s]) for s in seeds}
    rng = np.random.default_rng(seed)

    def measured(drawn: Sequence[int], resample: bool) -> Array:
        """(3, methods): KL, reward, share; means over the drawn seeds."""
        found = np.zeros((3, len(drawn), len(names)))
        for i, s in enumerate(drawn):
            count = curves[names[0]][s].rewards.shape[1]
            prompts = rng.integers(count, size=count) if resample else np.arange(count)
            for j, name in enumerate(names):
                curve = curves[name][s]
                kl, reward = curve.kls[-LAST_TIMES:, prompts].mean(1), curve.rewards[-LAST_TIMES:, prompts].mean(1)
                found[:, i, j] = kl.mean(), reward.mean(), best[s].share(kl, reward).mean()
        return np.asarray(found.mean(1))

    estimate = measured(seeds, resample=False)
    sampled = np.stack([measured(rng.choice(seeds, size=len(seeds)).tolist(), resample=True) for _ in range(draws)])
    result = {}
    for j, name in enumerate(names):
        kl, reward, share = (_interval(estimate[k, j], sampled[:, k, j]) for k in range(3))
        differences = {
            base: _interval(estimate[2, j] - estimate[2, b], sampled[:, 2, j] - sampled[:, 2, b])
            for b, base in enumerate(names)
            if base in baselines
        }
        result[name] = Efficiency(kl, reward, share, differences)
    return result


def efficiency_table(found: Mapping[str, Efficiency]) -> str:
    """Markdown: KL, reward and share of each method, and the differences of its share from the baselines'."""
    baselines = list(next(iter(found.values())).differences) if found else []
    heads = [
        "method",
        "KL",
        "reward",
        "share of the optimum's gain at its KL",
        *(f"minus {base}" for base in baselines),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, own in found.items():
        cells = [f"{own.kl[0]:.3f}", f"{own.reward[0]:.4f}", _shown(own.share)]
        cells += [_shown(own.differences[base]) if base != name else "–" for base in baselines]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(estimate: float, values: Array) -> Interval:
    if not np.isfinite(estimate) or not np.isfinite(values).any():
        return float("nan"), float("nan"), float("nan")
    return (float(estimate), *percentile_interval(values, ignore_nan=True))


def _shown(values: Interval) -> str:
    if not np.isfinite(values[0]):
        return "farther than the samples show"
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"
