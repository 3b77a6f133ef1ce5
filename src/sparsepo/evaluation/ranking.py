"""How well scores order positives before negatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), a tie counting half.

    Ties matter here: a sparse mask gives the same score, zero, to many tokens.

    Args:
        scores: finite numbers, any shape, n in all.
        labels: true at positives, as many.

    Raises:
        ValueError: shapes differ, a score is not finite, or one class is missing.
    """
    values, positive = _checked(scores, labels)
    ranks = average_ranks(values)
    positives = int(positive.sum())
    negatives = positive.size - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, (n,); ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # the average rank of a group of ties that ends at rank e and has c members: e − (c − 1) / 2
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation, ties averaged; None where one of the two does not vary or fewer than two are given.

    Raises:
        ValueError: shapes differ.
    """
    a, b = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} values; give as many of each.")
    if a.size < 2 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(np.corrcoef(average_ranks(a), average_ranks(b))[0, 1])


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Σ_k (recall_k − recall_{k−1}) · precision_k over the distinct scores in falling order, without interpolation.

    Tied items enter together, so their order does not matter; constant scores give the share of positives.

    Args, Raises: as :func:`roc_auc`.
    """
    values, positive = _checked(scores, labels)
    _, inverse, counts = np.unique(-values, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, weights=positive)  # positives at each distinct score, highest first
    precision = np.cumsum(hits) / np.cumsum(counts)
    return float((hits * precision).sum() / positive.sum())


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64).ravel()
    positive = np.asarray(labels).astype(bool).ravel()
    if values.shape != positive.shape:
        raise ValueError(f"{values.size} scores but {positive.size} labels; give one label for each score.")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} scores are not finite; leave them out.")
    if positive.all() or not positive.any():
        raise ValueError(
            f"Ranking needs both classes, but {int(positive.sum())} of {positive.size} labels are positive; "
            "score more tokens."
        )
    return values, positive
