"""TR-DPO's moving reference (``sync_ref_model``) beside a policy that carries a mask head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from sparsepo import SparsePOTrainer, load_mask
from sparsepo.scoring import dense_pair_scores
from sparsepo.training.step import MASK_ATTRIBUTE
from tests.support import tiny_model

from .running import assert_same, build, logged, mask_state, moved, policy_state, prepared_rows, run_config, steps_of

ALPHA = 0.25


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 8)


def moving(folder: Path, rows: Dataset, every: int = 1, alpha: float = ALPHA, **settings: Any) -> SparsePOTrainer:
    config = run_config(
        folder,
        **{
            "max_steps": 4,
            "sync_ref_model": True,
            "ref_model_sync_steps": every,
            "ref_model_mixup_alpha": alpha,
            "learning_rate": 1e-2,
            **settings,
        },
    )
    return build(config, rows)


class Record(TrainerCallback):
    """Policy and reference after every step; the policy is as its optimiser left it."""

    def __init__(self, trainer: SparsePOTrainer) -> None:
        self.trainer = trainer
        self.policies: list[dict[str, torch.Tensor]] = []
        self.references: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.policies.append(policy_state(self.trainer))
        self.references.append(reference_state(self.trainer))


def reference_state(trainer: SparsePOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.ref_model.named_parameters()}


@pytest.mark.parametrize(("every", "sharing"), [(1, "common"), (2, "independent")])
def test_the_reference_follows_the_policy_without_its_mask(
    tmp_path: Path, rows: Dataset, every: int, sharing: str
) -> None:
    trainer = moving(tmp_path, rows, every, mask_sharing=sharing)
    record = Record(trainer)
    trainer.add_callback(record)
    reference, head = reference_state(trainer), mask_state(trainer)
    trainer.train()
    assert len(record.policies) == 4
    for step, (policy, found) in enumerate(zip(record.policies, record.references, strict=True), start=1):
        if step % every == 0:
            reference = {name: (1 - ALPHA) * value + ALPHA * policy[name] for name, value in reference.items()}
        assert found.keys() == reference.keys()
        for name, value in reference.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=f"step {step}, {name}")
    assert moved(dict(tiny_model("gpt2").named_parameters()), record.references[-1]) > 1e-3
    assert moved(head, mask_state(trainer)) > 1e-4
    assert not [name for name, _ in trainer.ref_model.named_parameters() if MASK_ATTRIBUTE in name]
    assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())


def test_masks_and_log_ratios_read_the_moved_reference(tmp_path: Path, rows: Dataset) -> None:
    trainer = moving(tmp_path, rows, every=2)
    trainer.train()
    batch = trainer.data_collator(list(rows))
    found = trainer.score(batch)
    policy = tiny_model("gpt2")
    policy.load_state_dict(policy_state(trainer), strict=False)  # the tied head has no entry of its own
    mask = copy.deepcopy(trainer.masker).eval()
    expected = dense_pair_scores(policy.eval(), trainer.ref_model, batch, mask)
    stale = dense_pair_scores(policy.eval(), tiny_model("gpt2"), batch, mask)
    for name in ("policy_logps", "ref_logps", "kl", "reward_mask"):
        mine, theirs, old = (
            getattr(scores.chosen, name)[found.chosen.response_mask] for scores in (found, expected, stale)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        if name != "policy_logps":
            assert float((mine - old).detach().abs().max()) > 1e-3, name


def test_a_reference_that_becomes_the_policy_leaves_no_reward(tmp_path: Path, rows: Dataset) -> None:
    trainer = moving(tmp_path, rows, alpha=1.0, max_steps=3)
    trainer.train()
    for entry in steps_of(logged(trainer)):
        assert entry["rewards/margins"] == pytest.approx(0, abs=1e-6)
        assert entry["kl/chosen"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"objective": "mapo"}, {"objective": "dpo"}], ids=["sparsepo", "mapo", "dpo"])
def test_resuming_brings_the_moved_reference_back(tmp_path: Path, rows: Dataset, settings: dict[str, Any]) -> None:
    settings = {**settings, "save_strategy": "steps", "save_steps": 2}
    whole = moving(tmp_path / "whole", rows, **settings)
    whole.train()
    resumed = moving(tmp_path / "resumed", rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(reference_state(resumed), reference_state(whole))
    assert_same(policy_state(resumed), policy_state(whole))
    assert_same(list(steps_of(logged(resumed, after=2))), list(steps_of(logged(whole, after=2))))


def test_the_saved_folder_holds_the_reference_that_the_mask_reads(tmp_path: Path, rows: Dataset) -> None:
    trainer = moving(tmp_path, rows)
    trainer.train()
    trainer.save_model()
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "reference")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = trainer.data_collator(list(rows))
    again = dense_pair_scores(policy.eval(), reference, batch, load_mask(tmp_path, reference))
    found = trainer.score(batch)
    for name in ("policy_logps", "ref_logps", "kl", "reward_mask"):
        keep = found.rejected.response_mask
        mine, theirs = (getattr(scores.rejected, name)[keep] for scores in (found, again))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_without_the_reference_is_refused(tmp_path: Path, rows: Dataset) -> None:
    fixed = moving(tmp_path / "fixed", rows, sync_ref_model=False, save_strategy="steps", save_steps=2)
    fixed.train()
    assert not (tmp_path / "fixed" / "checkpoint-2" / "reference").exists()
    with pytest.raises(FileNotFoundError, match="made without sync_ref_model=True"):
        moving(tmp_path / "moving", rows).train(resume_from_checkpoint=str(tmp_path / "fixed" / "checkpoint-2"))


def test_what_has_no_reference_cannot_be_synchronised(tmp_path: Path, rows: Dataset) -> None:
    with pytest.raises(ValueError, match="sync_ref_model=True has no effect with objective='simpo'"):
        moving(tmp_path, rows, objective="simpo")
    with pytest.raises(NotImplementedError, match="sync_ref_model=True"):
        build(run_config(tmp_path, sync_ref_model=True), rows, lora=True)
