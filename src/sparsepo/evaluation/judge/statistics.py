"""Win rates with intervals over prompts, a sign test, and the win rate at equal length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsepo.evaluation.bootstrap import drawn_places, percentile_interval
from sparsepo.evaluation.proportions import wilson_interval

Array = NDArray[np.float64]
_RIDGE = 0.01  # of the logistic fit: a normal prior of standard deviation 10 on both coefficients
_NEWTON = 50


class Clusters:
    """Rows that belong to prompts: prompts are independent, rows of one prompt are not.

    Args:
        prompts: the prompt of each row.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        if not prompts:
            raise ValueError("There are no rows to take statistics of.")
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        self.of_row = np.array([places[prompt] for prompt in prompts])  # (N,)
        self.count = len(places)

    def means(self, values: Array) -> Array:
        """Mean of the rows of each prompt, (count,)."""
        sums = np.bincount(self.of_row, weights=values, minlength=self.count)
        return sums / np.bincount(self.of_row, minlength=self.count)

    def resamples(self, count: int, seed: int) -> Iterator[Array]:
        """How often each row is drawn when prompts are drawn with replacement, in blocks of (some, N)."""
        for places in drawn_places(self.count, count, np.random.default_rng(seed), len(self.of_row)):
            size = len(places)
            drawn = places + self.count * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * self.count).reshape(size, self.count)
            yield counts[:, self.of_row].astype(np.float64)


def mean_with_interval(
    values: Array, clusters: Clusters, resamples: int = 10_000, seed: int = 0, *, shares: bool = True
) -> dict[str, Any]:
    """Mean over rows with a 95 % interval by the percentile bootstrap over prompts.

    Where all prompts have the same mean the bootstrap sees no spread; shares then get Wilson's interval over prompts, and
    other values none.

    Args:
        values: (N,).
        clusters: prompts of the rows.
        resamples, seed: of the bootstrap.
        shares: the values are shares within [0, 1], not differences or counts that happen to lie there.

    Returns:
        ``value``, ``low``, ``high``, ``interval`` (``bootstrap`` or ``wilson``; None: none), ``rows``, ``prompts``.
    """
    value, means = float(values.mean()), clusters.means(values)
    found: dict[str, Any] = {"value": value, "rows": len(values), "prompts": clusters.count}
    if np.ptp(means) > 0:
        draws = [(own @ values) / own.sum(axis=1) for own in clusters.resamples(resamples, seed)]
        low, high = percentile_interval(np.concatenate(draws))
        return {**found, "low": low, "high": high, "interval": "bootstrap"}
    if shares:
        low, high = wilson_interval(value, clusters.count)
        return {**found, "low": low, "high": high, "interval": "wilson"}
    return {**found, "low": None, "high": None, "interval": None}


def sign_test(scores: Array, clusters: Clusters) -> dict[str, Any]:
    """Two-sided exact sign test over prompts: are wins as frequent as losses? Ties say nothing and are left out.

    Args:
        scores: (N,), 1 a win, 0 a loss; a prompt's mean above ½ is a win.
        clusters: prompts of the rows.

    Returns:
        ``wins``, ``losses``, ``ties`` of prompts, and ``p``.
    """
    means = clusters.means(scores)
    wins, losses = int((means > 0.5).sum()), int((means < 0.5).sum())
    return {
        "wins": wins,
        "losses": losses,
        "ties": clusters.count - wins - losses,
        "p": binomial_p(wins, wins + losses),
    }


def binomial_p(successes: int, trials: int) -> float:
    """Two-sided exact p-value of a fair coin; 1 without trials."""
    tail = min(successes, trials - successes)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) - trials * math.log(2)
        for k in range(tail + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(own) for own in logs))


def length_controlled(
    scores: Array, length_differences: Array, clusters: Clusters, resamples: int = 1_000, seed: int = 0
) -> dict[str, Any]:
    """The win rate if both answers were equally long; in principle AlpacaEval 2's (Dubois et al. 2024, arXiv 2404.04475).

    Fitted is P(win) = σ(θ + φ · tanh(Δ / s)), Δ the difference of the lengths in characters and s its standard deviation
    over rows, by cross-entropy with the scores themselves (½ for a tie), with a ridge of 0.01 on each coefficient
    (½ · 0.01 · (θ² + φ²)): without it there is no finite fit where length decides every row. The length-controlled win rate
    is σ(θ). AlpacaEval 2 has besides a difficulty of each instruction, fitted over many models: with two systems there is
    nothing to fit it on.

    Args:
        scores: (N,) in [0, 1].
        length_differences: (N,), candidate minus baseline.
        clusters: prompts of the rows.
        resamples, seed: of the bootstrap over prompts, each with its own fit; s stays.

    Returns:
        ``value``, ``low``, ``high``, ``theta``, ``phi``, ``scale`` (s); where all scores are alike ``value`` is None and
        there is a ``reason``.
    """
    if np.ptp(scores) == 0:
        return {
            "value": None,
            "low": None,
            "high": None,
            "reason": "all scores are alike: length explains nothing of them",
        }
    scale = float(length_differences.std())
    x = np.tanh(length_differences / scale) if scale > 0 else np.zeros_like(scores)
    theta, phi = fit_logistic(x, scores, np.ones((1, len(scores))))[0]
    draws = np.concatenate([fit_logistic(x, scores, own)[:, 0] for own in clusters.resamples(resamples, seed)])
    low, high = _sigmoid(np.array(percentile_interval(draws)))
    found = {"value": float(_sigmoid(np.array(theta))), "low": float(low), "high": float(high)}
    return {**found, "theta": float(theta), "phi": float(phi), "scale": scale}


def fit_logistic(x: Array, y: Array, weights: Array) -> Array:
    """θ and φ of σ(θ + φ x) ≈ y by Newton's method, for several weightings of the rows at once.

    Args:
        x, y: (N,), y in [0, 1].
        weights: (R, N).

    Returns:
        (R, 2).
    """
    beta = np.zeros((len(weights), 2))
    for _ in range(_NEWTON):
        p = _sigmoid(beta[:, :1] + beta[:, 1:] * x)  # (R, N)
        error, spread = weights * (p - y), weights * p * (1 - p)
        gradient = np.stack([error.sum(1), error @ x], axis=1) + _RIDGE * beta
        a, b, c = spread.sum(1) + _RIDGE, spread @ x, spread @ (x * x) + _RIDGE
        determinant = a * c - b * b
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], axis=1)
        step /= determinant[:, None]
        step *= np.minimum(1.0, 4.0 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-12))  # far steps overshoot
        beta -= step
        if np.abs(step).max() < 1e-9:
            break
    return beta


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def ratio_with_interval(
    statistic: Callable[[Array], Array], clusters: Clusters, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """A statistic of row weights with a 95 % interval by the bootstrap over prompts.

    Args:
        statistic: weights (R, N) → (R,); not-a-number where a resample has nothing to say.
    """
    value = float(statistic(np.ones((1, len(clusters.of_row))))[0])
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    draws = np.concatenate([statistic(own) for own in clusters.resamples(resamples, seed)])
    low, high = percentile_interval(draws, ignore_nan=True)
    return {"value": value, "low": low, "high": high}
