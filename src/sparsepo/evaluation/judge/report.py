"""Verdicts → the numbers of ``judge.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .questions import Verdict
from .statistics import Array, Clusters, length_controlled, mean_with_interval, ratio_with_interval, sign_test
from .verdicts import FIRST, SECOND, TIE, UNANSWERED


def summarise(verdicts: Sequence[Verdict], seed: int = 0, resamples: int = 10_000) -> dict[str, Any]:
    """Win rate and all that stands beside it; docs/judge.md names the fields.

    Args:
        verdicts: of all comparisons, also excluded ones.
        seed, resamples: of the bootstrap; length-controlled intervals take a tenth of the resamples, each of which is a fit.
    """
    judged = [own for own in verdicts if own.score is not None]
    found: dict[str, Any] = {
        "comparisons": len(verdicts),
        "prompts": len({own.comparison.prompt for own in verdicts}),
        "judged": len(judged),
        "identical": sum(not own.judgements and own.margin is None for own in verdicts),
        "unasked": sum(own.unasked for own in verdicts),
        "excluded": len(verdicts) - len(judged) - sum(own.unasked and own.score is None for own in verdicts),
        "problems": _problems(verdicts),
    }
    if not judged:
        return {**found, "win_rate": None}
    clusters = Clusters([own.comparison.prompt for own in judged])
    scores = np.array([own.score for own in judged])
    lengths = np.array([own.comparison.length_difference for own in judged], dtype=np.float64)
    return {
        **found,
        "counts": {
            "wins": int((scores > 0.5).sum()),
            "ties": int((scores == 0.5).sum()),
            "losses": int((scores < 0.5).sum()),
        },
        "win_rate": mean_with_interval(scores, clusters, resamples, seed),
        "bounds": _bounds(scores, len(verdicts)),
        "sign_test": sign_test(scores, clusters),
        "length_controlled": length_controlled(scores, lengths, clusters, max(resamples // 10, 1), seed),
        "lengths": _lengths(judged, scores, lengths, resamples, seed),
        "order": _order(verdicts, resamples, seed),
        "margin": _margin(judged, clusters, resamples, seed),
    }


def _problems(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Answers without a verdict, by why; of unasked ones none."""
    counts = Counter(
        judgement.problem
        for own in verdicts
        for judgement in own.judgements
        if judgement.problem and not (own.unasked and judgement.problem == UNANSWERED)
    )
    return dict(counts.most_common())


def _bounds(scores: Array, total: int) -> dict[str, float]:
    """Where the win rate lies if every comparison without a verdict were lost, and if every one were won."""
    missing = total - len(scores)
    return {"low": float(scores.sum() / total), "high": float((scores.sum() + missing) / total)}


def _lengths(judged: Sequence[Verdict], scores: Array, lengths: Array, resamples: int, seed: int) -> dict[str, Any]:
    """Mean lengths in characters, and how often the longer answer is preferred (½: as often as not)."""
    own = [len(verdict.comparison.candidate.strip()) for verdict in judged]
    other = [len(verdict.comparison.baseline.strip()) for verdict in judged]
    found: dict[str, Any] = {
        "candidate": float(np.mean(own)),
        "baseline": float(np.mean(other)),
        "longer_preferred": None,
    }
    unequal = lengths != 0
    if unequal.any():
        preferred = np.where(lengths > 0, scores, 1 - scores)[unequal]
        clusters = Clusters([judged[place].comparison.prompt for place in np.flatnonzero(unequal).tolist()])
        found["longer_preferred"] = mean_with_interval(preferred, clusters, resamples, seed)
    return found


def _order(verdicts: Sequence[Verdict], resamples: int, seed: int) -> dict[str, Any] | None:
    """How far the two orders agree, and how often the answer shown first is preferred; None without both orders."""
    both = [own for own in verdicts if own.consistent is not None]
    if not both:
        return None
    clusters = Clusters([own.comparison.prompt for own in both])
    values = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}
    pairs: list[tuple[str, ...]] = [tuple(str(judgement.outcome) for judgement in own.judgements) for own in both]
    first = np.array([sum(values[outcome] for outcome in pair) / 2 for pair in pairs])
    consistent = np.array([float(bool(own.consistent)) for own in both])
    table = Counter(pairs)
    outcomes = (FIRST, TIE, SECOND)
    return {
        "comparisons": len(both),
        "consistency": mean_with_interval(consistent, clusters, resamples, seed),
        "first_preferred": mean_with_interval(first, clusters, resamples, seed),
        "both_times_first": table[(FIRST, FIRST)],
        "both_times_second": table[(SECOND, SECOND)],
        # rows: the candidate shown first; columns: the baseline shown first; each first, tie, second
        "table": [[table[(a, b)] for b in outcomes] for a in outcomes],
        "consistent_win_rate": _consistent(both, consistent, resamples, seed),
    }


def _consistent(both: Sequence[Verdict], consistent: Array, resamples: int, seed: int) -> dict[str, Any]:
    """The win rate over comparisons on which both orders agree."""
    scores = np.array([own.score for own in both])

    def rate(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            shares: Array = (weights @ (scores * consistent)) / (weights @ consistent)
        return shares

    return ratio_with_interval(rate, Clusters([own.comparison.prompt for own in both]), resamples, seed)


def _margin(judged: Sequence[Verdict], clusters: Clusters, resamples: int, seed: int) -> dict[str, Any] | None:
    """Mean difference of the rewards; None for language models."""
    if any(own.margin is None for own in judged):
        return None
    return mean_with_interval(np.array([own.margin for own in judged]), clusters, resamples, seed, shares=False)
