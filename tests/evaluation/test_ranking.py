"""AUC and average precision against definitions written out by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsepo.evaluation import average_precision, roc_auc

# few distinct scores, so that ties are common
items = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40)


def both_classes(rows: list[tuple[int, bool]]) -> tuple[list[int], list[bool]]:
    labels = [label for _, label in rows]
    assume(any(labels) and not all(labels))
    return [score for score, _ in rows], labels


@given(items)
def test_auc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, labels = both_classes(rows)
    positive = [s for s, label in zip(scores, labels, strict=True) if label]
    negative = [s for s, label in zip(scores, labels, strict=True) if not label]
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    assert roc_auc(scores, labels) == pytest.approx(wins / (len(positive) * len(negative)), abs=1e-12)


@given(items)
def test_average_precision_sums_precision_over_thresholds(rows: list[tuple[int, bool]]) -> None:
    scores, labels = both_classes(rows)
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        kept = [label for s, label in zip(scores, labels, strict=True) if s >= threshold]
        new_recall = sum(kept) / sum(labels)
        total += (new_recall - recall) * sum(kept) / len(kept)
        recall = new_recall
    assert average_precision(scores, labels) == pytest.approx(total, abs=1e-12)


@given(items)
def test_only_the_order_of_scores_matters(rows: list[tuple[int, bool]]) -> None:
    scores, labels = both_classes(rows)
    moved = np.exp(np.asarray(scores) / 3) - 7
    assert roc_auc(moved, labels) == pytest.approx(roc_auc(scores, labels), abs=1e-12)
    assert roc_auc(-moved, labels) == pytest.approx(1 - roc_auc(scores, labels), abs=1e-12)
    assert average_precision(moved, labels) == pytest.approx(average_precision(scores, labels), abs=1e-12)


def test_constant_scores_know_nothing() -> None:
    labels = [True, False, False, False]
    assert roc_auc([0.5] * 4, labels) == 0.5
    assert average_precision([0.5] * 4, labels) == 0.25


@pytest.mark.parametrize("metric", [roc_auc, average_precision])
def test_bad_input_is_named(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="3 scores but 2 labels"):
        metric([1, 2, 3], [True, False])
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        metric([1, float("nan")], [True, False])
    with pytest.raises(ValueError, match="0 of 2 labels are positive"):
        metric([1, 2], [False, False])
