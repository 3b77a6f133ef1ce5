"""Faithfulness to the document, entailment among samples, and EDNA, which joins the two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .nli import Entailment
from .sentences import split_sentences


def entailment_matrix(document: str, summary: str, nli: Entailment) -> NDArray[np.float64]:
    """P(entailment) of each summary sentence (columns) by each document sentence (rows), (D, S).

    Sentences too long for the model come in parts, each a row or column of its own. D or S is 0 for a text without words.
    """
    premises, hypotheses = (
        [piece for sentence in split_sentences(text) for piece in nli.pieces(sentence)] for text in (document, summary)
    )
    pairs = [(premise, hypothesis) for premise in premises for hypothesis in hypotheses]
    if not pairs:
        return np.zeros((len(premises), len(hypotheses)))
    return nli.probabilities(pairs).reshape(len(premises), len(hypotheses))


def summac_zs(matrix: NDArray[np.float64]) -> float:
    """SummaC's zero-shot score of an entailment matrix (D, S): max over document sentences, mean over summary sentences.

    0 where the summary or the document has no sentence: nothing is said, or nothing supports it.

    Source:
        Laban et al. 2022, "SummaC" (TACL 10; arXiv 2111.09525), SummaC-ZS. The paper of SparsePO reports SummaC-Conv, whose
        trained convolution over the same matrix is not included here.
    """
    if matrix.size == 0:
        return 0.0
    return float(matrix.max(axis=0).mean())


def faithfulness(document: str, summary: str, nli: Entailment) -> float:
    """How far a summary follows from its document, 0 to 1: :func:`summac_zs` of its :func:`entailment_matrix`."""
    return summac_zs(entailment_matrix(document, summary, nli))


def self_entailment(summaries: Sequence[str], nli: Entailment) -> float | None:
    """How far the samples of one prompt follow from one another, 0 to 1; lower is more diverse in meaning.

    The mean of :func:`faithfulness` over all ordered pairs of samples, one taken as the document of the other.
    None for fewer than two samples.
    """
    if len(summaries) < 2:
        return None
    places = range(len(summaries))
    values = [faithfulness(summaries[i], summaries[j], nli) for i in places for j in places if i != j]
    return float(np.mean(values))


def edna(faithful: float, among_samples: float | None) -> float | None:
    """EDNA: harmonic mean of faithfulness and 1 − self-entailment, 0 to 1; higher is better on both counts.

    Args:
        faithful: mean faithfulness of a prompt's samples.
        among_samples: their :func:`self_entailment`; None gives None.

    Source:
        Narayan et al. 2022, "A Well-Composed Text is Half Done!" (arXiv 2203.15108), with SummaC as the entailment score.
    """
    if among_samples is None:
        return None
    diverse = 1.0 - among_samples
    return 2 * faithful * diverse / (faithful + diverse) if faithful + diverse > 0 else 0.0
