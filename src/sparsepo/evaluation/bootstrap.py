"""Resampling of prompts: the one place that draws them and reads intervals off the draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_BLOCK = 2_000_000  # numbers drawn at once, so that memory stays small; what is drawn does not depend on it


def drawn_places(
    count: int, draws: int, rng: np.random.Generator, width: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Places of prompts drawn with replacement, in blocks of (some, count).

    Args:
        count: prompts; each draw takes as many.
        draws: how many draws in all.
        rng: where they come from.
        width: numbers that the caller keeps of each draw, where that is more than ``count``.
    """
    block = max(1, min(draws, _BLOCK // max(count, width or 0, 1)))
    for start in range(0, draws, block):
        yield rng.integers(count, size=(min(block, draws - start), count))


def resampled_means(values: Array, draws: int, rng: np.random.Generator) -> Array:
    """Means over drawn prompts.

    Args:
        values: (…, prompts); what stands in front shares the draws.
        draws, rng: as :func:`drawn_places`.

    Returns:
        (…, draws).
    """
    parts = [values[..., places].mean(-1) for places in drawn_places(values.shape[-1], draws, rng, values.size)]
    return np.concatenate(parts, axis=-1) if parts else np.zeros((*values.shape[:-1], 0))


def percentile_interval(draws: Array, *, ignore_nan: bool = False) -> tuple[float, float]:
    """The ends of the 95 % percentile interval (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13).

    Args:
        draws: a statistic of each resample.
        ignore_nan: leave out resamples that have nothing to say (not-a-number).
    """
    low, high = (np.nanquantile if ignore_nan else np.quantile)(draws, (0.025, 0.975))
    return float(low), float(high)
