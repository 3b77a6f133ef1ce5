"""Bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bootstrap import percentile_interval, resampled_means

DRAWS = 2000


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Mean over prompts with its 95 % percentile bootstrap interval; prompts are drawn with replacement.

    Args:
        values: one a prompt.
        seed: of the draws.
        draws: how many bootstrap samples.

    Returns:
        ``value``, ``low``, ``high`` and ``count``; the bounds are None for fewer than two values, all for none.
    """
    own = np.asarray(values, dtype=np.float64)
    if not len(own):
        return {"value": None, "low": None, "high": None, "count": 0}
    result: dict[str, Any] = {"value": float(own.mean()), "low": None, "high": None, "count": len(own)}
    if len(own) < 2:
        return result
    low, high = percentile_interval(resampled_means(own, draws, np.random.default_rng(seed)))
    return {**result, "low": low, "high": high}
