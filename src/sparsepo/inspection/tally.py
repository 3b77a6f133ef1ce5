"""Means over tokens with intervals over pairs, added up while pairs come: memory grows with the labels, not the pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsepo.evaluation.proportions import Z, wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums with its 95 % interval.

    Args:
        value, low, high: the ratio, and the interval; not-a-number where one cluster says nothing of the spread.
        count: tokens.
        clusters: pairs (or what the interval is taken over).
    """

    value: float
    low: float
    high: float
    count: int
    clusters: int

    def to_json(self) -> dict[str, float | int | None]:
        """As JSON types; None where there is no interval."""
        numbers = {name: _finite(getattr(self, name)) for name in ("value", "low", "high")}
        return {**numbers, "count": self.count, "clusters": self.clusters}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Tally:
    """For each label Σ over clusters of n, s and their products, where a cluster (a pair) gave n tokens that sum to s.

    The ratio Σs / Σn has the variance Σ(s − ratio·n)² / (Σn)², times c / (c − 1) for c clusters: tokens of one pair are
    not independent, pairs are.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}  # label → c, Σn, Σn², Σs, Σs², Σsn

    def add(self, labels: Sequence[str], values: ArrayLike) -> None:
        """Add the tokens of one cluster: a label and a value each."""
        own = np.asarray(values, dtype=np.float64)
        names, places = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
        counts = np.bincount(places, minlength=len(names))
        totals = np.bincount(places, weights=own, minlength=len(names))
        for name, n, s in zip(names.tolist(), counts.tolist(), totals.tolist(), strict=True):
            self.add_sums(name, n, s)

    def add_sums(self, label: str, n: float, s: float) -> None:
        """Add one cluster of n tokens that sum to s."""
        sums = self._sums.setdefault(label, np.zeros(6))
        sums += (1, n, n * n, s, s * s, s * n)

    def __contains__(self, label: str) -> bool:
        return label in self._sums

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def totals(self, label: str) -> tuple[int, float]:
        """Tokens and their sum."""
        return int(self._sums[label][1]), float(self._sums[label][3])

    def estimate(self, label: str) -> Estimate:
        """The mean of a label's tokens."""
        clusters, n, nn, s, ss, sn = self._sums[label]
        if not n:
            return Estimate(math.nan, math.nan, math.nan, 0, int(clusters))
        ratio = s / n
        if clusters < 2:
            return Estimate(ratio, math.nan, math.nan, int(n), int(clusters))
        residual = max(ss - 2 * ratio * sn + ratio * ratio * nn, 0.0)
        half = Z * math.sqrt(residual * clusters / (clusters - 1)) / n
        return Estimate(ratio, ratio - half, ratio + half, int(n), int(clusters))

    def share(self, label: str) -> Estimate:
        """Of clusters that gave one token each, 0 or 1: the share of ones with Wilson's interval, which stays in [0, 1]."""
        _, n, _, s, _, _ = self._sums[label]
        ratio = s / n
        return Estimate(ratio, *wilson_interval(ratio, n), int(n), int(n))

    def estimates(self, labels: Iterable[str] | None = None) -> dict[str, Estimate]:
        """By label, in the order given or in which labels came."""
        return {label: self.estimate(label) for label in (self if labels is None else labels) if label in self}


class Moments:
    """Pearson's correlation of two numbers a token, added up while they come."""

    def __init__(self) -> None:
        self._sums = np.zeros(6)  # n, Σx, Σy, Σx², Σy², Σxy

    def add(self, x: ArrayLike, y: ArrayLike) -> None:
        """Add tokens."""
        a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        self._sums += (len(a), a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum())

    def correlation(self) -> float | None:
        """None where one of the two does not vary."""
        n, x, y, xx, yy, xy = self._sums
        spread = (n * xx - x * x) * (n * yy - y * y)
        if n < 2 or spread <= 1e-12 * max(xx * yy, 1e-30) * n * n:
            return None
        return float(np.clip((n * xy - x * y) / math.sqrt(spread), -1, 1))
