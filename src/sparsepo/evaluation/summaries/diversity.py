"""How much the samples of one prompt differ: self-BLEU and distinct-n."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from .requirements import optional


def self_bleu(summaries: Sequence[str]) -> float | None:
    """Self-BLEU of the samples of one prompt, 0 to 100; lower is more diverse.

    The mean, over the samples, of the sentence BLEU (``sacrebleu``: up to 4-grams, tokenizer 13a, exponential smoothing,
    orders without n-grams left out) of a sample against all others as references. Equal samples have 100, empty ones
    among themselves too; an empty sample among others that are not has 0.

    Args:
        summaries: samples of one prompt. None comes back for fewer than two: there is nothing to compare.

    Source:
        Zhu et al. 2018, "Texygen" (arXiv 1802.01886); there over a whole set of texts, here within a prompt.
    """
    if len(summaries) < 2:
        return None
    total = 0.0
    for place, summary in enumerate(summaries):
        others = [other for number, other in enumerate(summaries) if number != place]
        total += _bleu(summary, others)
    return total / len(summaries)


def _bleu(summary: str, references: Sequence[str]) -> float:
    if not summary.strip():
        return 100.0 if any(not other.strip() for other in references) else 0.0
    if summary in references:
        return 100.0  # exactly, without the library's rounding
    kept = [other for other in references if other.strip()]
    if not kept:
        return 0.0
    return min(100.0, float(optional("sacrebleu", "Self-BLEU").sentence_bleu(summary, kept).score))


def distinct(summaries: Sequence[str], n: int) -> float | None:
    """Distinct-n of the samples of one prompt: different n-grams ÷ all n-grams, 0 to 1; higher is more diverse.

    Tokens are those of ``sacrebleu``'s tokenizer 13a, case kept. N-grams stay within a sample.

    Args:
        summaries: samples of one prompt; None comes back where none of them holds n tokens.
        n: length of the n-grams.

    Source:
        Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models" (arXiv 1510.03055).
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    grams: list[tuple[str, ...]] = []
    for summary in summaries:
        tokens = _tokenizer()(summary).split()
        grams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


@cache
def _tokenizer() -> Any:
    optional("sacrebleu", "Distinct-n")
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()
