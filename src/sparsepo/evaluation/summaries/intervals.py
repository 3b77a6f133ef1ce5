"""Bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 2000
_ROWS = 200  # draws made at once, so that memory stays small


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Mean over prompts with its 95 % percentile bootstrap interval; prompts are drawn with replacement.

    Args:
        values: one a prompt.
        seed: of the draws.
        draws: how many bootstrap samples.

    Returns:
        ``value``, ``low``, ``high`` and ``count``; the bounds are None for fewer than two values, all for none.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    own = np.asarray(values, dtype=np.float64)
    if not len(own):
        return {"value": None, "low": None, "high": None, "count": 0}
    result: dict[str, Any] = {"value": float(own.mean()), "low": None, "high": None, "count": len(own)}
    if len(own) < 2:
        return result
    rng = np.random.default_rng(seed)
    means: list[float] = []
    while len(means) < draws:
        rows = min(_ROWS, draws - len(means))
        means += own[rng.integers(0, len(own), size=(rows, len(own)))].mean(axis=1).tolist()
    low, high = np.quantile(means, [0.025, 0.975])
    return {**result, "low": float(low), "high": float(high)}
