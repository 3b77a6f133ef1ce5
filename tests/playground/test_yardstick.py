"""The yardstick: token table, rankings and controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsepo.evaluation import roc_auc
from sparsepo.objectives import PairScores, TokenScores
from sparsepo.playground.models import build_model, build_tokenizer
from sparsepo.playground.world import World
from sparsepo.playground.yardstick import token_table

WORLD = World()
PROMPT = "review of silver paper :"
CHOSEN = ["the film was truly superb .", "i enjoyed the long plot ."]
REJECTED = ["the film was grey and dull .", "it was a mess about a garden ."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(WORLD)


@pytest.fixture(scope="module")
def reference(tokenizer: Any) -> Any:
    return build_model(tokenizer, hidden_size=16, layers=1, heads=2).eval()


def scored_batch(tokenizer: Any, oracle: bool = True) -> tuple[dict[str, torch.Tensor], PairScores]:
    """Two pairs whose reward mask is .9 at preference words, 0 at "the" and .1 elsewhere."""
    texts = [f"{PROMPT} {text}" for text in CHOSEN + REJECTED]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    targets = batch["input_ids"][:, 1:]
    response = batch["attention_mask"][:, 1:].bool()
    response[:, : len(PROMPT.split()) - 1] = False
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in targets]
    mask = torch.tensor(
        [[0.9 if w in WORLD.preference_words else 0.0 if w == "the" else 0.1 for w in row] for row in words]
    )
    logps = torch.full(mask.shape, -1.0)

    def side(rows: slice) -> TokenScores:
        masks = mask[rows] if oracle else None
        return TokenScores(logps[rows], logps[rows] - 2 * mask[rows], None, masks, None, response[rows])

    return batch, PairScores(side(slice(0, 2)), side(slice(2, 4)))


def test_table_holds_response_tokens_only(tokenizer: Any, reference: Any) -> None:
    table = token_table(WORLD, tokenizer, reference, [scored_batch(tokenizer)])
    words = " ".join(CHOSEN + REJECTED).split()
    assert table.preference.tolist() == WORLD.preference_marks(words)
    assert table.open_class.tolist() == WORLD.open_class_marks(words)
    assert table.held_out.tolist() == [word in ("enjoyed",) for word in words]
    assert table.chosen.sum() == len(" ".join(CHOSEN).split())
    assert set(table.scores) == {"reward_mask", "log_ratio", "entropy", "uniform", "ceiling"}


def test_rankings_and_summary(tokenizer: Any, reference: Any) -> None:
    table = token_table(WORLD, tokenizer, reference, [scored_batch(tokenizer)])
    for side in ("chosen", "rejected", None):
        for content in (None, "open_class"):
            assert table.ranking("reward_mask", side, content) == {"auc": 1.0, "average_precision": 1.0}
            assert table.ranking("uniform", side, content)["auc"] == 0.5
    assert table.ranking("log_ratio", "chosen")["auc"] == 1.0
    summary = table.mask_summary("reward_mask")
    words = " ".join(CHOSEN + REJECTED).split()
    assert summary["sparsity"] == pytest.approx(words.count("the") / len(words))
    assert summary["mean_positive"] == pytest.approx(0.9)
    assert summary["max"] == pytest.approx(0.9)
    assert summary["mean_other"] < 0.1


def test_controls_are_those_of_the_reference(tokenizer: Any, reference: Any) -> None:
    table = token_table(WORLD, tokenizer, reference, [scored_batch(tokenizer)])
    ids = torch.tensor([tokenizer(f"{PROMPT} {CHOSEN[0]}")["input_ids"]])
    with torch.no_grad():
        p = reference(ids).logits[0].double().softmax(-1)
    first, count = len(PROMPT.split()) - 1, len(CHOSEN[0].split())
    entropy = -(p * p.log()).sum(-1)[first : first + count]
    np.testing.assert_allclose(table.scores["entropy"][:count], entropy, rtol=1e-5)
    marks = WORLD.preference_marks(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    ceiling = p[first : first + count][:, torch.tensor(marks)].sum(-1)
    np.testing.assert_allclose(table.scores["ceiling"][:count], ceiling, rtol=1e-5)
    chosen = table.chosen
    assert table.ranking("entropy", "chosen")["auc"] == roc_auc(
        table.scores["entropy"][chosen], table.preference[chosen]
    )


def test_batches_join_and_absent_masks_are_absent(tokenizer: Any, reference: Any) -> None:
    one = token_table(WORLD, tokenizer, reference, [scored_batch(tokenizer)])
    two = token_table(WORLD, tokenizer, reference, [scored_batch(tokenizer)] * 2)
    assert len(two.chosen) == 2 * len(one.chosen)
    assert "reward_mask" not in token_table(WORLD, tokenizer, reference, [scored_batch(tokenizer, oracle=False)]).scores
    with pytest.raises(ValueError, match="no scored batches"):
        token_table(WORLD, tokenizer, reference, [])
