"""Token tables for any labels, and controls beside masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsepo.evaluation import roc_auc
from sparsepo.evaluation.controls import (
    entropy,
    gradient_times_input,
    head_numbers,
    random_scores,
    reference_log_probs,
    untrained_masks,
)
from sparsepo.evaluation.reward_model import gradient_control, predict_rewards, train_reward_model
from sparsepo.evaluation.token_table import TokenTable, token_columns
from sparsepo.masks import LearnedMask, MaskInputs
from sparsepo.playground.world import World


@pytest.fixture
def batch(tokenizer: Any) -> dict[str, torch.Tensor]:
    texts = [
        "review of silver paper : the film was superb .",
        "review of silver paper : it was a dull mess about a city .",
    ]
    return dict(tokenizer(texts, padding=True, padding_side="right", return_tensors="pt"))


def table() -> TokenTable:
    return TokenTable(
        chosen=np.array([True, True, True, False, False, False]),
        positive=np.array([True, False, True, True, False, False]),
        scores={"x": np.array([3.0, 1.0, 0.0, 3.0, 0.0, 5.0])},
        groups={"content": np.array([True, True, False, True, True, False]), "a": np.array([True] + [False] * 5)},
    )


def test_rankings_select_tokens() -> None:
    own = table()
    assert own.ranking("x", within="content")["auc"] == 1.0
    assert own.ranking("x", side="chosen")["auc"] == 0.5  # 3 > 1 > 0
    assert own.ranking("x", positives="a")["auc"] == pytest.approx(2 / 3)  # other positives are left out
    assert own.mask_summary("x")["sparsity"] == pytest.approx(2 / 6)
    assert own.mask_summary("x")["mean_positive"] == 2.0
    for arguments, words in (
        (("y",), "score='y'"),
        (("x", "middle"), "side='middle'"),
        (("x", None, "verbs"), "no group 'verbs'"),
    ):
        with pytest.raises(ValueError, match=words):
            own.ranking(*arguments)
    with pytest.raises(ValueError, match="no scored batches"):
        token_columns([])


def test_random_scores_do_not_depend_on_the_batch(batch: dict[str, torch.Tensor]) -> None:
    both = random_scores(batch)
    alone = random_scores({name: value[:1, :10] for name, value in batch.items()})
    assert torch.equal(both[:1, :9], alone)
    assert not torch.equal(both, random_scores(batch, seed=1))
    assert both.max() < 1
    left = {name: value.flip(1) for name, value in batch.items()}  # padding at the left
    left["input_ids"] = torch.cat([batch["input_ids"][:1, 10:], batch["input_ids"][:1, :10]], 1)
    left["attention_mask"] = torch.cat([batch["attention_mask"][:1, 10:], batch["attention_mask"][:1, :10]], 1)
    assert torch.equal(random_scores(left)[0, -9:], alone[0])


@pytest.mark.parametrize("position", ["predicting", "token"])
def test_untrained_masks_and_heads_are_those_of_the_masker(
    batch: dict[str, torch.Tensor], reference: Any, position: str
) -> None:
    first, second = untrained_masks(reference, batch, [4, 5], position)
    response = batch["attention_mask"][:, 1:].bool()
    states = list(reference(**batch, output_hidden_states=True).hidden_states[1:])
    masker = LearnedMask.for_model(reference, init="ones", position=position, seed=5).eval()
    with torch.no_grad():
        expected = masker.raw_masks(MaskInputs(response, states))[0]
    assert torch.allclose(second[response], expected[response], atol=1e-6)
    assert float(second[response].mean()) > 10 * float(
        first[response].mean()
    )  # ones, and the published start near zero
    numbers = head_numbers(masker, reference, batch)["head_shared"]
    assert torch.allclose(numbers.clamp(min=0)[response], expected[response], atol=1e-6)
    independent = LearnedMask.for_model(reference, init="ones", sharing="independent", gate="sigmoid").eval()
    assert set(head_numbers(independent, reference, batch)) == {"head_reward", "head_kl"}
    only = LearnedMask.for_model(reference, init="ones", mask_on="reward").eval()
    assert set(head_numbers(only, reference, batch)) == {"head_reward"}


def test_entropy_is_of_the_reference(batch: dict[str, torch.Tensor], reference: Any) -> None:
    values = entropy(reference_log_probs(reference, batch))
    with torch.no_grad():
        p = reference(**batch).logits[0, :-1].double().softmax(-1)
    assert torch.allclose(values[0, :8].double(), -(p * p.log()).sum(-1)[:8], atol=1e-4)


@pytest.fixture(scope="module")
def reward_model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str], list[float]]:
    from sparsepo.playground.models import build_model

    world = World()
    texts = [review.response for review in world.reviews(400, 0)]
    folder = tmp_path_factory.mktemp("lm")
    build_model(tokenizer, hidden_size=32, layers=2, heads=2).save_pretrained(folder)
    rewards = [world.reward(text) for text in texts]
    trained = train_reward_model(folder, tokenizer, texts, rewards, epochs=8, learning_rate=3e-3, max_length=64)
    return trained, texts, rewards


def test_a_reward_model_learns_the_reward_and_its_gradient_finds_the_words(
    reward_model: tuple[Any, list[str], list[float]], tokenizer: Any
) -> None:
    model, _, _ = reward_model
    world = World()
    fresh = [review.response for review in world.reviews(100, 1)]
    predicted = predict_rewards(model, tokenizer, fresh)
    actual = torch.tensor([world.reward(text) for text in fresh])
    assert torch.corrcoef(torch.stack([predicted, actual]))[0, 1] > 0.5
    batch = dict(tokenizer(fresh[:64], padding=True, padding_side="right", return_tensors="pt"))
    values = gradient_control(model)(batch)["gradient_times_input"]
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    is_preference = torch.tensor([word in world.preference_words for word in words])[batch["input_ids"][:, 1:]]
    real = batch["attention_mask"][:, 1:].bool()
    assert values[is_preference & real].mean() > 4 * values[~is_preference & real].mean()
    assert roc_auc(values[real], is_preference[real]) > 0.7
    # padding is nothing that the reward depends on
    alone = dict(tokenizer(fresh[:1], return_tensors="pt"))
    found = gradient_times_input(model, alone["input_ids"], alone["attention_mask"])[:, 1:]
    assert torch.allclose(values[:1, : found.shape[1]], found, atol=1e-5)
    assert float(values[~real].abs().max()) == 0


def test_bad_reward_models_are_refused(
    reward_model: tuple[Any, list[str], list[float]], tokenizer: Any, policy: Any, tmp_path: Path
) -> None:
    _, texts, _ = reward_model
    with pytest.raises(ValueError, match="2 texts and 1 rewards"):
        train_reward_model(tmp_path, tokenizer, texts[:2], [1.0])
    with pytest.raises(ValueError, match="alike"):
        train_reward_model(tmp_path, tokenizer, texts[:2], [1.0, 1.0])
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="numbers a sequence"):
        gradient_times_input(policy, ids, torch.ones_like(ids))
