"""Our DPO is TRL's DPO: loss and gradients on the same batch, for every link they share."""

from __future__ import annotations

import copy

import pytest
import torch
from trl import DPOConfig, DPOTrainer

from sparsepo import SparsePOConfig, SparsePOTrainer
from tests.support import perturbed, preference_rows, tiny_model, tiny_tokenizer

COMMON = {"report_to": "none", "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 4}


def both(tmp_path, architecture: str, **settings):
    reference = tiny_model(architecture, head_scale=4.0)
    policy = perturbed(reference)
    rows, tokenizer = preference_rows(4), tiny_tokenizer()

    def build(trainer, config, **more):
        return trainer(
            copy.deepcopy(policy),
            copy.deepcopy(reference),
            config(str(tmp_path / trainer.__name__), **COMMON, **settings, **more),
            train_dataset=rows,
            processing_class=tokenizer,
        )

    return build(SparsePOTrainer, SparsePOConfig, objective="dpo"), build(DPOTrainer, DPOConfig)


def loss_and_gradients(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("architecture", "loss_type", "smoothing"),
    [
        ("gpt2", "sigmoid", 0.0),
        ("llama", "hinge", 0.0),
        ("llama", "ipo", 0.0),
        ("gpt2", "robust", 0.1),
        ("gemma2", "sigmoid", 0.0),
    ],
)
def test_dpo_equals_trl(tmp_path, architecture, loss_type, smoothing):
    ours, theirs = both(tmp_path, architecture, loss_type=[loss_type], label_smoothing=smoothing, beta=0.3)
    torch.manual_seed(0)
    (loss, gradients) = loss_and_gradients(ours)
    torch.manual_seed(0)
    (expected, expected_gradients) = loss_and_gradients(theirs)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().clamp(min=1e-8)
        assert (gradients[name] - gradient).abs().max() <= 2e-5 * scale, name


def test_metrics_have_trl_names_and_values(tmp_path):
    ours, theirs = both(tmp_path, "llama", beta=0.3)
    loss_and_gradients(ours)
    loss_and_gradients(theirs)
    values = ours._sums["train"].drain(ours.accelerator)
    for name, history in theirs._metrics["train"].items():
        if name == "num_tokens":
            continue
        assert values[name] == pytest.approx(sum(history) / len(history), rel=1e-4, abs=1e-5), name


def test_training_follows_trl(tmp_path):
    """Three optimiser steps end in the same weights (SGD: Adam would blow up the rounding of zero gradients)."""
    more = {"max_steps": 3, "learning_rate": 0.5, "optim": "sgd", "save_strategy": "no", "seed": 5}
    ours, theirs = both(tmp_path, "gpt2", **more)
    for trainer in (ours, theirs):
        trainer.train()
    for (name, one), (_, other) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-6), name
