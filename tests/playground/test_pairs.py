"""Pairs: best against worst, seeded, nothing unfinished."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsepo.evaluation import Completion
from sparsepo.playground.models import build_model, build_tokenizer
from sparsepo.playground.pairs import build_pairs, make_pairs
from sparsepo.playground.world import World

WORLD = World()


def completion(text: str, finished: bool = True) -> Completion:
    return Completion((1,), (1,), text, finished)


def pairs_of(*texts: str | Completion, **settings: Any) -> list[dict[str, Any]]:
    group = [text if isinstance(text, Completion) else completion(text) for text in texts]
    return build_pairs(["p"], [group], WORLD.reward, **settings)


def test_best_against_worst() -> None:
    (row,) = pairs_of("it was dull .", "it was long .", "it was superb superb .", "it was superb .")
    assert row["prompt"] == "p"
    assert (row["chosen"], row["rejected"]) == (" it was superb superb .", " it was dull .")
    assert row["chosen_reward"] == pytest.approx(WORLD.reward("superb superb"))
    assert row["rejected_reward"] == pytest.approx(WORLD.reward("dull"))


def test_what_gives_no_pair() -> None:
    assert not pairs_of("it was long .", "it was grey .")
    assert not pairs_of("it was superb .", completion("it was dull .", finished=False))
    assert not pairs_of("it was superb .", "")
    assert not pairs_of("it was superb .", "it was long .", min_gap=0.3)
    assert pairs_of("it was superb .", "it was long .", min_gap=0.2)
    assert not pairs_of("it was moving .", "it was long .", without_words=WORLD.held_out_words)
    assert not pairs_of("it was superb .")


@pytest.fixture(scope="module")
def eager() -> Any:
    """A model of two outcomes: it ends, or says a preference word."""
    tokenizer = build_tokenizer(WORLD)
    model = build_model(tokenizer, hidden_size=16, layers=1, heads=2)
    with torch.no_grad():
        model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=True)
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(-1e4)
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(["superb", "dull", "<eos>"])] = 0.0
    return model, tokenizer


def test_sampled_pairs_are_seeded(eager: Any) -> None:
    model, tokenizer = eager
    rows = make_pairs(WORLD, model, tokenizer, 20, seed=1)
    assert rows == make_pairs(WORLD, model, tokenizer, 20, seed=1)
    assert rows != make_pairs(WORLD, model, tokenizer, 20, seed=2)
    assert len(rows) > 10
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert row["chosen_reward"] == WORLD.reward(row["chosen"]) > WORLD.reward(row["rejected"])
        assert row["chosen"][0] == " "


def test_streams_are_independent(eager: Any) -> None:
    model, tokenizer = eager
    first, second = (make_pairs(WORLD, model, tokenizer, 20, seed=1, stream=s) for s in ("pairs", "held-out pairs"))
    assert not {row["prompt"] for row in first} & {row["prompt"] for row in second}
