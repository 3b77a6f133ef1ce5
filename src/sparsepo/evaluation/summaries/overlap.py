"""Overlap with references: ROUGE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from .requirements import optional

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def rouge(summary: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of a summary: F1 × 100, with Porter's stemmer, as ``rouge-score`` computes them.

    With several references, each type takes the reference that gives it the most. An empty summary has 0. The library
    reads ASCII letters and digits only: texts in other scripts have no tokens for it, and then 0.

    Args:
        summary: the text that is judged.
        references: one or more.

    Source:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".

    Raises:
        ValueError: no references.
        ImportError: ``rouge-score`` is not installed.
    """
    if not references:
        raise ValueError("ROUGE needs at least one reference.")
    found = _scorer().score_multi(list(references), summary)
    return {name: 100.0 * float(found[name].fmeasure) for name in ROUGE_TYPES}


@cache
def _scorer() -> Any:
    optional("rouge_score", "ROUGE")
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
