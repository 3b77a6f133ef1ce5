"""Means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# two-sided 95 % quantiles of Student's t by degrees of freedom
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval (None where one value says nothing about its spread)."""

    mean: float
    half_width: float | None

    def text(self, digits: int = 3) -> str:
        """For a table."""
        value = f"{self.mean:.{digits}f}"
        return value if self.half_width is None else f"{value} ± {self.half_width:.{digits}f}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % interval over the seeds' values.

    Raises:
        ValueError: no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("There are no values to average.")
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = _T95[count - 2] if count - 2 < len(_T95) else 1.96 + 2.5 / (count - 1)
    return Estimate(mean, quantile * math.sqrt(variance / count))
