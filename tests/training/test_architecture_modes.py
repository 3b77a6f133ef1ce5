"""Modes that must change nothing, on every architecture: hidden dropout, a training policy around its reference,
checkpointing, and a mixture of experts' auxiliary loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model

from sparsepo import SparsePOTrainer
from sparsepo.scoring import dense_pair_scores
from sparsepo.scoring.dense import forward_arguments
from sparsepo.training.step import MASK_ATTRIBUTE, base_model_of
from tests.support import (
    perturbed,
    tiny_config,
    tiny_model,
)

from .architectures import (
    EVERY,
    assert_same_scores,
    batch_of,
    trainer_of,
)
from .matrix import EXPERTS, QUIET_PEFT, lora

pytestmark = [
    *QUIET_PEFT,
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"),
]


# ---- dropout ----


def rates(architecture: str) -> dict[str, float]:
    """Every dropout-like setting of an architecture, raised."""
    settings = tiny_config(architecture).to_dict()
    names = [
        name for name, value in settings.items() if isinstance(value, float) and ("drop" in name or "jitter" in name)
    ]
    return {name: 0.3 for name in names if "classifier" not in name and "summary" not in name}


def train_mode_losses(trainer: SparsePOTrainer, batch: dict[str, Any]) -> list[float]:
    trainer.model.train()
    with torch.no_grad():
        return [float(trainer.compute_loss(trainer.model, dict(batch))) for _ in range(2)]


@EVERY
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_disable_dropout_finds_every_dropout(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    changes: dict[str, Any] = rates(architecture)
    if architecture == "falcon":
        changes["parallel_attn"] = False  # the only layout that uses its attention dropout a second time
    found = {}
    for disable in (True, False):
        reference = tiny_model(architecture, **changes)
        if tuning == "full":
            model, other, peft_config = perturbed(reference, scale=0.2), reference, None
        else:
            model, other, peft_config = reference, None, lora(architecture, lora_dropout=0.4, init_lora_weights=False)
        torch.manual_seed(0)
        trainer = trainer_of(
            model,
            tmp_path,
            rows,
            other,
            peft_config,
            objective="tdpo1",
            disable_dropout=disable,
            router_aux_loss_coef=0.0,
        )
        first, second = train_mode_losses(trainer, batch_of(trainer, rows))
        found[disable] = first != second
    assert not found[True]
    # and there was dropout to find
    assert found[False] == (bool(changes) or tuning == "lora")


# ---- reference ----


class SpyingScorer:
    """Keeps the reference's hidden states that a step was given."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer
        self.seen: list[torch.Tensor] = []

    def __call__(self, inputs: Any, objective: Any, need_kl: bool) -> Any:
        self.seen.append(inputs.reference_hidden.clone())
        return self.scorer(inputs, objective, need_kl)


@EVERY
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_reference_runs_in_evaluation_mode(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    start = tiny_model(architecture, **rates(architecture))
    peft_config = lora(architecture, lora_dropout=0.4) if tuning == "lora" else None
    trainer = trainer_of(copy.deepcopy(start), tmp_path, rows, None, peft_config, disable_dropout=False)
    trainer.scorer = SpyingScorer(trainer.scorer)
    batch = batch_of(trainer, rows)
    trainer.model.train()
    modes = [module.training for module in trainer.model.modules()]
    for _ in range(2):
        trainer.compute_loss(trainer.model, dict(batch)).backward()
    assert [module.training for module in trainer.model.modules()] == modes
    with torch.no_grad():
        expected = start.eval().base_model(**forward_arguments(start, batch)).last_hidden_state[:, :-1]
    real = batch["attention_mask"][:, :-1].bool()
    assert len(trainer.scorer.seen) == 2
    for seen in trainer.scorer.seen:
        assert not seen.requires_grad
        torch.testing.assert_close(seen[real], expected[real], rtol=1e-5, atol=1e-6)
    if trainer.ref_model is not None:
        assert not any(module.training for module in trainer.ref_model.modules())
        assert all(parameter.grad is None for parameter in trainer.ref_model.parameters())


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt_neox", "falcon", "gptj", "phi", "gemma2"],  # with bias: gptj, phi; tied: falcon, gemma2
)
def test_a_trained_head_leaves_the_reference_its_own(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    start = tiny_model(architecture)
    adapter = lora(architecture, modules_to_save=["lm_head"], target_modules=r".*(q_proj|query_key_value)")
    trainer = trainer_of(tiny_model(architecture), tmp_path, rows, None, adapter, objective="tdpo1")
    batch = batch_of(trainer, rows)
    with torch.no_grad():
        before = dense_pair_scores(start.eval(), start, batch)
    trainer.train()
    after = trainer.score(batch)
    assert_same_scores(after, before, ("ref_logps",))
    base = base_model_of(trainer.model)
    trained = base.get_output_embeddings().modules_to_save["default"].weight.detach()
    assert float((trained - start.get_output_embeddings().weight.detach()).abs().max()) > 1e-3
    assert float(after.chosen.kl.max()) > 1e-4
    trainer.save_model()
    policy = PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    with torch.no_grad():
        again = dense_pair_scores(policy, start, batch)
    assert_same_scores(after, again, ("policy_logps", "ref_logps", "kl"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_a_given_adapter_is_its_own_reference(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    """A PeftModel that was trained before: TRL keeps a frozen copy of its adapter, which is the reference."""
    torch.manual_seed(3)
    policy = get_peft_model(tiny_model(architecture), lora(architecture, init_lora_weights=False))
    start = copy.deepcopy(policy).eval()
    trainer = trainer_of(policy, tmp_path, rows, objective="tdpo1")
    batch = batch_of(trainer, rows)
    with torch.no_grad():
        expected = dense_pair_scores(start, start, batch)
    assert_same_scores(trainer.score(batch), expected, ("policy_logps", "ref_logps"))
    trainer.train()
    after = trainer.score(batch)
    assert_same_scores(after, expected, ("ref_logps",))
    assert float((after.chosen.policy_logps - expected.chosen.policy_logps).abs().max()) > 1e-3


# ---- gradient checkpointing ----


def gradients(trainer: SparsePOTrainer, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@EVERY
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointing_changes_no_gradient(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    found = []
    ways: list[dict[str, Any]] = [{"gradient_checkpointing": False}, {"gradient_checkpointing": True}]
    if architecture not in EXPERTS:  # there refused, see below
        ways.append({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}})
    for settings in ways:
        torch.manual_seed(0)
        adapter = lora(architecture, init_lora_weights=False) if tuning == "lora" else None
        reference = tiny_model(architecture)
        policy, other = (perturbed(reference), reference) if tuning == "full" else (reference, None)
        trainer = trainer_of(policy, tmp_path, rows, other, adapter, share_prefix="off", **settings)
        batch = batch_of(trainer, rows)
        if settings["gradient_checkpointing"]:
            base_model_of(trainer.model).activation_checkpointing_enable(settings.get("gradient_checkpointing_kwargs"))
            assert base_model_of(trainer.model).is_gradient_checkpointing
        found.append(gradients(trainer, batch))
    plain = found[0]
    assert any("lora_" in name for name in plain) == (tuning == "lora")
    assert any(MASK_ATTRIBUTE in name for name in plain)
    for others in found[1:]:
        assert others.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# ---- mixtures of experts ----


@pytest.mark.parametrize("architecture", EXPERTS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_auxiliary_loss_is_the_models_own(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    reference = tiny_model(architecture)
    adapter = lora(architecture) if tuning == "lora" else None
    losses, slopes = {}, {}
    for coefficient in (0.0, 0.5):
        trainer = trainer_of(
            copy.deepcopy(reference),
            tmp_path,
            rows,
            peft_config=adapter,
            objective="dpo",
            router_aux_loss_coef=coefficient,
            logging_strategy="steps",
            logging_steps=1,
        )
        batch = batch_of(trainer, rows)
        trainer.model.train()
        losses[coefficient] = trainer.compute_loss(trainer.model, dict(batch))
        losses[coefficient].backward()
        slopes[coefficient] = {
            name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
        }
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logged) == 2
        assert all(("aux_loss" in entry) == (coefficient > 0) for entry in logged)
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask")}
    own = reference.eval()(**arguments, output_router_logits=True).aux_loss
    assert own.item() > 1.0
    torch.testing.assert_close(losses[0.5] - losses[0.0], 0.5 * own, rtol=1e-5, atol=1e-6)
    assert slopes[0.5].keys() == slopes[0.0].keys()
    if tuning == "lora":  # its B matrices, zero at the start, are what the gradient reaches
        assert any(not torch.allclose(slope, slopes[0.0][name]) for name, slope in slopes[0.5].items())
        return
    own.backward()
    for name, parameter in reference.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else 0.5 * parameter.grad
        torch.testing.assert_close(slopes[0.5][name] - slopes[0.0][name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_checkpointing_that_cuts_the_router_off_is_refused(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"use_reentrant.*auxiliary loss.*router_aux_loss_coef=0\.0"):
        trainer_of(tiny_model(architecture), tmp_path, rows, **settings)
    trainer_of(tiny_model(architecture), tmp_path, rows, router_aux_loss_coef=0.0, **settings).train()
