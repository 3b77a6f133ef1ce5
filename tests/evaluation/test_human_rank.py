"""HumanRankEval: the authors' definition, padding and truncation, blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparsepo.evaluation.human_rank import (
    BLOCK,
    Question,
    correlation,
    correlations,
    human_rank,
    prompt_of,
    scored_in_blocks,
)
from tests.support import tiny_model, tiny_tokenizer

QUESTIONS = [
    Question("the film was", ("good and warm", "bad", "the story was slow and cold"), (5, 1, 3)),
    Question("a story with the actor", ("fine", "awful scene"), (2, -1)),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("gpt2", head_scale=5.0)


def by_hand(model: Any, question: str, answer: str) -> float:
    """Σ log-probabilities of " answer" after the prompt, divided by the answer's characters."""
    tokenizer = tiny_tokenizer()
    context = tokenizer(prompt_of(question))["input_ids"]
    whole = tokenizer(f"{prompt_of(question)} {answer}")["input_ids"]
    with torch.no_grad():
        logps = model.eval()(torch.tensor([whole])).logits[0].log_softmax(-1)
    total = sum(float(logps[t - 1, whole[t]]) for t in range(len(context), len(whole)))
    return total / len(answer)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_log_likelihoods_per_character(model: Any, batch_size: int) -> None:
    found = human_rank(model, tiny_tokenizer(), QUESTIONS, batch_size=batch_size)
    for question, own in zip(QUESTIONS, found, strict=True):
        assert own == [
            pytest.approx(by_hand(model, question.question, answer), abs=1e-5) for answer in question.answers
        ]


def test_correlations_are_pearsons(model: Any) -> None:
    found = human_rank(model, tiny_tokenizer(), QUESTIONS)
    expected = [np.corrcoef(question.votes, own)[0, 1] for question, own in zip(QUESTIONS, found, strict=True)]  # type: ignore[arg-type]
    assert correlations(QUESTIONS, found) == pytest.approx(expected)
    assert correlation((1, 2, 3), (10, 20, 30)) == pytest.approx(1)
    assert correlation((1, 2, 3), (3, 2, 1)) == pytest.approx(-1)


def test_what_cannot_be_ranked_has_none() -> None:
    assert correlation((1, 1), (0.1, 0.2)) is None
    assert correlation((1, 2), (0.1, 0.1)) is None
    assert correlations([QUESTIONS[1]], [[0.1, None]]) == [None]


def test_prompts_lose_their_beginning_and_answers_nothing(model: Any) -> None:
    long = Question("the film was " * 40, ("good", "bad and slow"), (1, 2))
    tokenizer = tiny_tokenizer()
    found = human_rank(model, tokenizer, [long], max_length=20)[0]
    answer = tokenizer(" bad and slow")["input_ids"]
    ids = [*tokenizer(prompt_of(long.question))["input_ids"][len(answer) - 20 :], *answer]
    assert len(ids) == 20
    with torch.no_grad():
        logps = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(float(logps[t - 1, ids[t]]) for t in range(20 - len(answer), 20)) / len("bad and slow")
    assert found[1] == pytest.approx(expected, abs=1e-5)
    assert human_rank(model, tokenizer, [long], max_length=3)[0] == [
        pytest.approx(human_rank(model, tokenizer, [long], max_length=3)[0][0]),
        None,  # three tokens leave no room for one before them
    ]


def test_blocks_are_kept() -> None:
    questions = [Question(f"q{n}", ("a", "b"), (0, 1)) for n in range(BLOCK + 1)]
    calls: list[int] = []
    kept: dict[str, Any] = {}

    def score(part: Any) -> list[list[float | None]]:
        calls.append(len(part))
        return [[0.0, 1.0] for _ in part]

    def keep(key: str, make: Callable[[], Any]) -> Any:
        return kept[key] if key in kept else kept.setdefault(key, make())

    assert len(scored_in_blocks(questions, score, keep)) == len(questions)
    scored_in_blocks(questions, score, keep)
    assert calls == [BLOCK, 1]


@pytest.mark.parametrize(
    ("answers", "votes", "message"),
    [
        (("a",), (1.0,), "two answers at least"),
        (("a", "b"), (1.0,), "2 answers and 1 votes"),
        (("a", ""), (1.0, 2.0), "an answer is empty"),
        (("a", "b"), (1.0, float("nan")), "finite"),
    ],
)
def test_questions_are_checked(answers: Any, votes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Question("q", answers, votes)
