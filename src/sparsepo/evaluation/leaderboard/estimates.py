"""Scores with standard errors, for single models and for differences on the same documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Influence = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A score that is (to first order) a sum over documents.

    Args:
        value: the score.
        influence: sample of documents → how much each document moves the score, (N,); Σ over a sample is zero.
    """

    value: float
    influence: Influence = field(default_factory=dict)

    @property
    def stderr(self) -> float | None:
        """Standard error: sqrt(Σ over samples of N/(N−1) Σ u²). For a mean of N numbers that is s/√N with s² over N−1.

        None where a sample has fewer than two documents.
        """
        if not self.influence or any(len(own) < 2 for own in self.influence.values()):
            return None
        return math.sqrt(sum(len(own) / (len(own) - 1) * float((own**2).sum()) for own in self.influence.values()))

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two models' scores, document by document: what makes a document hard for both cancels.

        Raises:
            ValueError: the two are over other samples, or samples of other sizes.
        """
        sizes = [{name: len(own) for name, own in one.influence.items()} for one in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError("The two scores are over other documents; run both models on the same tasks and limit.")
        found = {name: own - other.influence[name] for name, own in self.influence.items()}
        return Estimate(self.value - other.value, found)

    def to_json(self) -> dict[str, float | None]:
        """``value`` and ``stderr``."""
        return {"value": self.value, "stderr": self.stderr}


def ratio(sample: str, sums: NDArray[np.float64], counts: NDArray[np.float64], scale: float = 1.0) -> Estimate:
    """``scale`` × Σ sums ÷ Σ counts, a document giving a sum over a count of things (1 for most metrics).

    Args:
        sample: name of the documents.
        sums, counts: of each document, (N,).
        scale: factor.

    Raises:
        ValueError: nothing is counted.
    """
    total = float(counts.sum())
    if not total:
        raise ValueError(f"{sample}: there are no documents.")
    value = float(sums.sum()) / total
    return Estimate(scale * value, {sample: scale * (sums - value * counts) / total})


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of several scores; those over the same sample go together document by document.

    Raises:
        ValueError: there are none.
    """
    if not estimates:
        raise ValueError("There are no scores to average.")
    influence: dict[str, NDArray[np.float64]] = {}
    for one in estimates:
        for name, own in one.influence.items():
            influence[name] = influence[name] + own / len(estimates) if name in influence else own / len(estimates)
    return Estimate(sum(one.value for one in estimates) / len(estimates), influence)
