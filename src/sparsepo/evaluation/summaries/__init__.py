"""Metrics of summaries: overlap with references, diversity of samples, faithfulness to the document; with intervals."""

from __future__ import annotations

from .intervals import bootstrap_mean
from .items import SummaryItem, SummarySet
from .metrics import METRICS, Metric
from .scoring import Judges, Scored, compare, score_set

__all__ = [
    "METRICS",
    "Judges",
    "Metric",
    "Scored",
    "SummaryItem",
    "SummarySet",
    "bootstrap_mean",
    "compare",
    "score_set",
]
