"""Masks handed to the trainer: what still counts, what is refused, and a mask that is held."""

from __future__ import annotations

import pytest
import torch

from sparsepo import LearnedMask, RandomMask, SparsePOConfig, SparsePOTrainer
from sparsepo.training.settings import resolve_settings
from tests.support import preference_rows, tiny_model, tiny_tokenizer


def config(**settings) -> SparsePOConfig:
    return SparsePOConfig("unused", report_to="none", **settings)


def trained(tmp_path, mask, **settings) -> SparsePOTrainer:
    defaults = {"max_steps": 3, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none"}
    trainer = SparsePOTrainer(
        tiny_model(),
        args=SparsePOConfig(str(tmp_path), per_device_train_batch_size=4, **{**defaults, **settings}),
        train_dataset=preference_rows(8),
        processing_class=tiny_tokenizer(),
        mask=mask,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (LearnedMask(32, 2), (0.005, 0.01)),
        (LearnedMask(32, 2, sharing="independent"), (0.01, 0.02)),
    ],
)
def test_l1_follows_the_mask_that_is_there(mask, expected):
    objective = resolve_settings(config(mask_l1_reward=0.01, mask_l1_kl=0.02), mask).objective
    assert (objective.l1_reward, objective.l1_kl) == expected


def test_l1_of_a_one_sided_mask():
    mask = LearnedMask(32, 2, mask_on="reward")
    assert resolve_settings(config(mask_l1_reward=0.01), mask).objective.l1_reward == 0.01
    with pytest.raises(ValueError, match=r"mask_l1_kl=0\.01 has no effect with mask_on='reward'"):
        resolve_settings(config(mask_l1_kl=0.01), mask)


@pytest.mark.parametrize("settings", [{"mask_learning_rate": 1e-3}, {"mask_l1_reward": 0.5}])
def test_training_settings_of_a_mask_without_training_are_refused(settings):
    with pytest.raises(ValueError, match="has no effect with a mask handed to the trainer"):
        resolve_settings(config(**settings), RandomMask())


def test_mapo_takes_activation_masks_only():
    with pytest.raises(ValueError, match="mask=LearnedMask: objective='mapo' means activation masks"):
        resolve_settings(config(objective="mapo"), LearnedMask(32, 2))


def test_a_frozen_mask_stays_as_it_is(tmp_path):
    mask = LearnedMask(32, 2, init="ones").requires_grad_(False)
    before = {name: value.clone() for name, value in mask.state_dict().items()}
    trainer = trained(tmp_path, mask)
    assert all(torch.equal(value, before[name]) for name, value in trainer.masker.state_dict().items())
    assert not any("sparsepo_mask" in name for name, _ in trainer.model.named_parameters())


def test_a_learning_rate_of_zero_holds_the_mask(tmp_path):
    trainer = trained(tmp_path, None, mask_learning_rate=0.0)
    start = LearnedMask(32, 2, init="ones", map="mlp", seed=trainer.args.seed)
    for name, value in trainer.masker.named_parameters():
        assert torch.equal(value, start.get_parameter(name).to(value))


def test_published_preset_without_masks_is_refused():
    with pytest.raises(ValueError, match="preset='published' has no effect with objective='dpo'"):
        resolve_settings(config(objective="dpo", preset="published"))
