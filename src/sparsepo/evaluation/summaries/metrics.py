"""The metrics by name: what a number is and which way is better. Each is defined in the file of its function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What is computed together and asked for together
GROUPS = ("rouge", "bertscore", "diversity", "faithfulness", "length")


@dataclass(frozen=True)
class Metric:
    """One number a prompt.

    Args:
        name: in files.
        label: in tables and figures.
        group: of :data:`GROUPS`.
        better: which way; "" where neither is.
        digits: after the point, in tables.
        definition: one sentence.
    """

    name: str
    label: str
    group: str
    better: Literal["higher", "lower", ""]
    digits: int
    definition: str


_ALL = (
    Metric("rouge1", "ROUGE-1", "rouge", "higher", 1, "F1 × 100 of single words with the reference, stemmed."),
    Metric("rouge2", "ROUGE-2", "rouge", "higher", 1, "F1 × 100 of pairs of words with the reference, stemmed."),
    Metric("rougeL", "ROUGE-L", "rouge", "higher", 1, "F1 × 100 of the longest common subsequence, stemmed."),
    Metric("bertscore", "BERTScore", "bertscore", "higher", 3, "F1 of greedily matched token states of an encoder."),
    Metric(
        "self_bleu", "self-BLEU", "diversity", "lower", 1, "BLEU (0 to 100) of each sample against a prompt's others."
    ),
    Metric("distinct1", "distinct-1", "diversity", "higher", 3, "Different words ÷ words in a prompt's samples."),
    Metric(
        "distinct2", "distinct-2", "diversity", "higher", 3, "Different pairs of words ÷ pairs in a prompt's samples."
    ),
    Metric(
        "faithfulness",
        "faithfulness (SummaC-ZS)",
        "faithfulness",
        "higher",
        3,
        "Entailment of each summary sentence by the best document sentence, mean over sentences.",
    ),
    Metric(
        "self_entailment",
        "self-entailment",
        "faithfulness",
        "lower",
        3,
        "The same between the samples of a prompt, mean over ordered pairs.",
    ),
    Metric("edna", "EDNA", "faithfulness", "higher", 3, "Harmonic mean of faithfulness and 1 − self-entailment."),
    Metric("words", "words", "length", "", 1, "Words of a summary, split at blanks."),
    Metric("empty", "empty summaries", "length", "lower", 3, "Share of a prompt's summaries without any text."),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def metrics_of(group: str) -> list[str]:
    """Names of a group's metrics.

    Raises:
        ValueError: there is no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"metrics={group!r} is unknown; choose from {', '.join(GROUPS)}.")
    return [metric.name for metric in _ALL if metric.group == group]
