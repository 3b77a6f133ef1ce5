"""Every objective with every mask it reads, trained fully and by LoRA, on every architecture: the whole way from two
steps of training to a folder that plain transformers loads and that scores the same.

The default suite runs a set of cases that covers all pairs; the whole product is marked ``long``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from sparsepo import SparsePOConfig, SparsePOTrainer, load_mask
from sparsepo.scoring import dense_pair_scores
from sparsepo.training.step import MASK_ATTRIBUTE, base_model_of
from tests.support import tiny_model, tiny_tokenizer

from .matrix import MASKS, QUIET_PEFT, Case, covering_set, lora, pairs_of, whole_product

pytestmark = QUIET_PEFT
_COVERING = covering_set()
_OTHERS = [case for case in whole_product() if case not in _COVERING]


def run_config(folder: Path, **settings: Any) -> SparsePOConfig:
    """Two steps without decay: what has no gradient does not move."""
    return SparsePOConfig(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "use_cpu": True,
            **settings,
        },
    )


def trainer_of(case: Case, folder: Path, rows: Dataset) -> SparsePOTrainer:
    settings: dict[str, Any] = dict(MASKS[case.mask]) if case.objective != "mapo" else {}
    if case.is_learned:
        settings |= {"mask_weight_decay": 0.0, "mask_gate": case.gate}
    config = run_config(folder, objective=case.objective, gradient_checkpointing=case.checkpointing, **settings)
    return SparsePOTrainer(
        tiny_model(case.architecture),
        args=config,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=lora(case.architecture) if case.tuning == "lora" else None,
    )


def copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def has_no_gradient(case: Case, name: str) -> bool:
    """Keys' biases without rotary positions add the same number to all of a query's attention scores, which softmax
    removes: OPT's gradient there is rounding alone. Sparsemax and entmax do the same to what shifts all tokens alike."""
    if case.architecture == "opt" and name.endswith("k_proj.bias"):
        return True
    shifts = ("layer_bias", "inner_bias", "norm.bias")
    return case.gate in ("sparsemax", "entmax") and MASK_ATTRIBUTE in name and name.endswith(shifts)


def check_changes(case: Case, trainer: SparsePOTrainer, before: dict[str, torch.Tensor]) -> None:
    """What trains has moved, and nothing else."""
    after = dict(trainer.model.named_parameters())
    assert after.keys() == before.keys()
    trainable = {name for name, parameter in after.items() if parameter.requires_grad}
    if case.tuning == "full":
        assert trainable == set(after)
    else:
        assert all("lora_" in name or MASK_ATTRIBUTE in name for name in trainable)
        assert any("lora_" in name for name in trainable)
    assert any(MASK_ATTRIBUTE in name for name in trainable) == case.is_learned
    change = {name: float((after[name].detach() - before[name]).abs().max()) for name in after}
    still = [name for name in trainable if change[name] < 1e-4 and not has_no_gradient(case, name)]
    assert not still
    assert not [name for name in set(after) - trainable if change[name] != 0]


def check_reference(case: Case, trainer: SparsePOTrainer, before: dict[str, torch.Tensor] | None) -> None:
    """The reference is the model that training started from (with LoRA it is the base, seen by ``check_changes``)."""
    if case.tuning == "lora" or case.objective == "simpo":
        assert trainer.ref_model is None
        return
    assert trainer.ref_model is not None
    assert before is not None
    after = dict(trainer.ref_model.named_parameters())
    start = dict(tiny_model(case.architecture).named_parameters())
    assert after.keys() == before.keys() == start.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(value, start[name]), name


def reloaded(case: Case, folder: Path) -> torch.nn.Module:
    """The saved policy through plain transformers or PEFT, with nothing missing, left over or custom."""
    assert not list(folder.rglob("*.py"))
    assert not list(folder.rglob("*.bin"))
    if case.tuning == "full":
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
        check_keys(folder / "model.safetensors")
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        return model
    check_keys(folder / "adapter_model.safetensors")
    assert json.loads((folder / "adapter_config.json").read_text())["auto_mapping"] is None
    model = PeftModel.from_pretrained(tiny_model(case.architecture), folder)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        wanted = {name for name in model.state_dict() if "lora_" in name}
        assert set(file.keys()) == {name.replace(".default", "") for name in wanted}
    return model


def check_keys(file: Path) -> None:
    with safe_open(file, "pt") as tensors:
        assert not [name for name in tensors.keys() if "mask" in name]  # noqa: SIM118 - not a dict


def check_mask(case: Case, trainer: SparsePOTrainer, folder: Path) -> torch.nn.Module | None:
    """The saved mask is the trained one."""
    if case.mask == "none":
        assert trainer.masker is None
        assert not (folder / "mask").exists()
        return None
    mask = load_mask(folder, tiny_model(case.architecture))
    assert mask.settings() == trainer.masker.settings()
    ours, saved = trainer.masker.state_dict(), mask.state_dict()
    assert ours.keys() == saved.keys()
    assert bool(ours) == case.is_learned
    for name, value in ours.items():
        assert torch.equal(value, saved[name]), name
    return mask


def check_scores(case: Case, trainer: SparsePOTrainer, policy: torch.nn.Module, mask: Any, batch: Any) -> None:
    """What the trainer scored and what the reloaded pieces score by their own logits are the same."""
    ours = trainer.score(batch)
    again = dense_pair_scores(policy.eval(), tiny_model(case.architecture), batch, mask)
    for side in ("chosen", "rejected"):
        mine, theirs = getattr(ours, side), getattr(again, side)
        keep = mine.response_mask
        assert torch.equal(keep, theirs.response_mask)
        assert int(keep.sum()) > 8
        names = ["policy_logps"] + ([] if case.objective == "simpo" else ["ref_logps", "kl"])
        for name in names + ([] if mask is None else ["reward_mask", "kl_mask"]):
            value, expected = getattr(mine, name)[keep], getattr(theirs, name)[keep]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        # two models that were equal would pass all of the above
        assert float((mine.policy_logps - theirs.ref_logps)[keep].abs().max()) > 1e-3


def run(case: Case, folder: Path, rows: Dataset) -> None:
    trainer = trainer_of(case, folder, rows)
    assert trainer.objective.name == case.objective
    assert (trainer.masker is None) == (case.mask == "none")
    before = copied(trainer.model)
    reference = None if trainer.ref_model is None else copied(trainer.ref_model)
    trainer.train()
    assert trainer.state.global_step == 2
    assert base_model_of(trainer.model).is_gradient_checkpointing == case.checkpointing
    check_changes(case, trainer, before)
    check_reference(case, trainer, reference)
    assert "forward" not in base_model_of(trainer.model).__dict__
    trainer.save_model()
    batch = trainer.data_collator([rows[index] for index in (1, 4, 6)])
    check_scores(case, trainer, reloaded(case, folder), check_mask(case, trainer, folder), batch)


@pytest.mark.parametrize("case", _COVERING, ids=str)
def test_trains_saves_reloads_and_scores_the_same(case: Case, tmp_path: Path, rows: Dataset) -> None:
    run(case, tmp_path, rows)


@pytest.mark.long
@pytest.mark.parametrize("case", _OTHERS, ids=str)
def test_the_rest_of_the_product(case: Case, tmp_path: Path, rows: Dataset) -> None:
    run(case, tmp_path, rows)


def test_the_default_cases_cover_every_pair() -> None:
    wanted = set().union(*(pairs_of(case) for case in whole_product()))
    held = set().union(*(pairs_of(case) for case in _COVERING))
    assert wanted <= held
    assert all(case.is_valid for case in _COVERING)
    # neither way of training and no architecture is an afterthought
    assert min(sum(case.tuning == tuning for case in _COVERING) for tuning in ("full", "lora")) > len(_COVERING) // 3
