"""Judging models and masks: sampling, divergence from the reference, ranking of token scores, the optimum at a KL."""

from __future__ import annotations

from .generation import Completion, sample_completions
from .kl import sequence_kl
from .ranking import average_precision, roc_auc
from .tilting import TiltedReference
from .token_table import TokenTable, token_columns

__all__ = [
    "Completion",
    "TiltedReference",
    "TokenTable",
    "average_precision",
    "roc_auc",
    "sample_completions",
    "sequence_kl",
    "token_columns",
]
