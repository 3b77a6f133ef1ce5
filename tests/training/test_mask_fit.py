"""The fit of learned masks to the policy's own log-ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sparsepo import LearnedMask, load_mask
from sparsepo.training.mask_fit import CLIP, LogRatioFit, signal_of
from tests.support import perturbed, tiny_model

from .running import (
    assert_close,
    assert_same,
    build,
    logged,
    mask_state,
    moved,
    policy_state,
    prepared_rows,
    run_config,
)
from .running import steps_of as entries_of

FIT = {"mask_log_ratio_weight": 1.0, "mask_map": "mlp", "mask_learning_rate": 5e-3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 24)


def batch_of(trainer: Any, rows: Dataset, count: int = 6) -> dict[str, Any]:
    return trainer._prepare_inputs(trainer.data_collator(list(rows.take(count))))


def loss_of(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    trainer.model.train()
    return trainer.compute_loss(trainer.model, batch)


def perturbed_trainer(folder: Path, rows: Dataset, **settings: Any) -> Any:
    reference = tiny_model("gpt2")
    trainer = build(run_config(folder, **{**FIT, **settings}), rows, model=perturbed(reference), ref_model=reference)
    for head in trainer.masker.mask_heads():
        head.signal_size.fill_(0.05)
    return trainer


@pytest.mark.parametrize("sharing", ["common", "independent"])
@pytest.mark.parametrize("scorer", ["fused", "dense"])
def test_the_term_is_the_formula(tmp_path: Path, rows: Dataset, sharing: str, scorer: str) -> None:
    """Loss with the term − loss without it, from the scores that everyone can read."""
    settings = {"mask_sharing": sharing, "scorer": scorer, "skip_masked": False}
    trainer = perturbed_trainer(tmp_path, rows, **settings)
    batch = batch_of(trainer, rows)
    with torch.no_grad():
        found = loss_of(trainer, batch)
        fit, trainer.mask_fit = trainer.mask_fit, None
        plain = loss_of(trainer, batch)
    scores = trainer.score(batch)
    sides = (scores.chosen, scores.rejected)
    response = torch.cat([side.response_mask for side in sides])
    values = shown_values(trainer, batch)
    expected = torch.zeros(())
    for name in trainer.masker.heads:
        parts = [side.kl if name == "kl" else (side.policy_logps - side.ref_logps).abs() for side in sides]
        target = (torch.cat(parts) / 0.05).clamp(max=CLIP)
        error = ((values[name] - target) ** 2 * response).sum(-1).view(2, -1).sum(0)
        expected = expected + (error / response.sum(-1).view(2, -1).sum(0)).mean()
    assert fit.weight == 1.0
    assert found - plain == pytest.approx(float(expected), rel=1e-4)


def shown_values(trainer: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The heads' numbers, computed apart from the step."""
    mask, seen = trainer.masker, {}
    forward = mask.token_masks

    def remember(inputs: Any) -> Any:
        found = forward(inputs)
        seen.update(found.values)
        return found

    mask.token_masks = remember
    try:
        trainer.score(batch)
    finally:
        del mask.token_masks
    return seen


def test_no_gradient_of_the_term_reaches_the_policy(tmp_path: Path, rows: Dataset) -> None:
    trainer = perturbed_trainer(tmp_path, rows, optim="sgd")
    batch = batch_of(trainer, rows)

    def gradients() -> dict[str, torch.Tensor]:
        trainer.model.zero_grad()
        loss_of(trainer, batch).backward()
        return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    with_fit = gradients()
    trainer.mask_fit = None
    without = gradients()
    heads = [name for name in without if "sparsepo_mask" in name]
    assert heads
    assert_close(
        {n: g for n, g in with_fit.items() if n not in heads}, {n: without[n] for n in without if n not in heads}, 0, 0
    )
    assert any(not torch.equal(with_fit[name], without[name]) for name in heads)


def test_tokens_that_no_mask_keeps_are_fitted_too(tmp_path: Path, rows: Dataset) -> None:
    """Skipped tokens are sampled and weighed: over steps the term's mean is that of all tokens."""
    trainer = perturbed_trainer(tmp_path, rows, kl_anchor=0.0, logging_steps=1000)
    for head in trainer.masker.mask_heads():
        head.offset.fill_(1.0)  # about half of the tokens are shut
    batch = batch_of(trainer, rows, 12)
    trainer.args.skip_masked = False
    with torch.no_grad():
        loss_of(trainer, batch)
        whole = trainer._sums["train"].drain(trainer.accelerator)
        trainer.args.skip_masked = True
        errors = []
        for step in range(60):
            trainer.state.global_step = step + 1
            loss_of(trainer, batch)
            errors.append(trainer._sums["train"].drain(trainer.accelerator)["mask/fit_error"])
    assert 0.2 < whole["mask/reward/sparsity"] < 0.8
    spread = torch.tensor(errors).std() / len(errors) ** 0.5
    assert len(set(errors)) > 10
    assert abs(sum(errors) / len(errors) - whole["mask/fit_error"]) < 4 * spread


def test_micro_batches_are_one_batch(tmp_path: Path, rows: Dataset) -> None:
    found = []
    for size in (8, 2):
        own = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 4}
        trainer = build(run_config(tmp_path, **{**FIT, "optim": "sgd", "learning_rate": 0.05, **own}), rows)
        trainer.train()
        found.append((mask_state(trainer), policy_state(trainer)))
    assert float(found[0][0]["heads.shared.signal_size"]) > 0
    for one, several in zip(*found, strict=True):
        assert_close(one, several, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 3])
def test_resuming_is_bit_for_bit(tmp_path: Path, rows: Dataset, cut: int) -> None:
    own = {**FIT, "save_strategy": "steps", "save_steps": cut, "max_steps": 5, "mask_target_sparsity": 0.4}
    whole = build(run_config(tmp_path / "whole", **own), rows)
    start = mask_state(whole)
    whole.train()
    resumed = build(run_config(tmp_path / "resumed", **own), rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{cut}"))
    assert_same(policy_state(resumed), policy_state(whole))
    assert_same(mask_state(resumed), mask_state(whole))
    assert_same(logged(resumed, after=cut)[:-1], logged(whole, after=cut)[:-1])
    assert moved(start, mask_state(whole)) > 1e-3


def test_the_mean_is_saved_and_a_new_run_begins_without(tmp_path: Path, rows: Dataset) -> None:
    trainer = build(run_config(tmp_path, max_steps=4, **FIT), rows)
    trainer.train()
    trainer.save_model()
    saved = load_mask(tmp_path)
    assert float(saved.heads["shared"].signal_size) > 0
    again = build(run_config(tmp_path, max_steps=1, mask_log_ratio_weight=1.0), rows, mask=saved)
    assert float(again.masker.heads["shared"].signal_size) == 0
    assert not build(run_config(tmp_path, max_steps=1), rows, mask=saved).masker.shows_values


def test_masks_come_to_follow_the_log_ratios(tmp_path: Path, rows: Dataset) -> None:
    """Few steps on few pairs: the mask's correlation with the log-ratio rises far over that without the fit."""
    found = {}
    for weight in (0.0, 1.0):
        own = {**FIT, "mask_log_ratio_weight": weight, "max_steps": 80, "per_device_train_batch_size": 12}
        own |= {"learning_rate": 1e-3, "mask_learning_rate": 1e-2, "lr_scheduler_type": "cosine"}
        trainer = build(run_config(tmp_path, **own), rows)
        trainer.train()
        scores = trainer.score(batch_of(trainer, rows, 24))
        sides = (scores.chosen, scores.rejected)
        response = torch.cat([side.response_mask for side in sides])
        mask = torch.cat([side.reward_mask for side in sides])[response]
        size = signal_of("shared", sides)[response]
        found[weight] = float(torch.corrcoef(torch.stack([mask, size]))[0, 1])
        if weight:
            errors = [entry["mask/fit_error"] for entry in entries_of(logged(trainer))]
            assert errors[0] == 0  # nothing to fit where the policy is the reference
            assert sum(errors[-10:]) < sum(errors[5:15])
    assert found[1.0] > 0.35
    assert found[1.0] > found[0.0] + 0.2


def test_what_cannot_be_fitted_is_refused(tmp_path: Path, rows: Dataset) -> None:
    for settings, message in (
        ({"mask": "activation"}, "mask_log_ratio_weight=1.0 has no effect with mask='activation'"),
        ({"objective": "dpo"}, "mask_log_ratio_weight=1.0 has no effect with objective='dpo'"),
        ({"mask_log_ratio_weight": -1.0}, "mask_log_ratio_weight=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(run_config(tmp_path, **{"mask_log_ratio_weight": 1.0, **settings}), rows)
    fit = LogRatioFit(1.0, LearnedMask(8, 2))
    with pytest.raises(ValueError, match="hold no values"):
        fit.add(None, build_masks(), torch.ones(1), None)  # type: ignore[arg-type]


def build_masks() -> Any:
    from sparsepo.masks.base import TokenMasks

    return TokenMasks(torch.ones(2, 3), torch.ones(2, 3))
