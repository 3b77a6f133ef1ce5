"""Judging models: sampling, divergence from the reference, ranking of token scores."""

from __future__ import annotations

from .generation import Completion, sample_completions
from .kl import sequence_kl
from .ranking import average_precision, roc_auc

__all__ = ["Completion", "average_precision", "roc_auc", "sample_completions", "sequence_kl"]
