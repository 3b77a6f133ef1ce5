"""Interrupted and uninterrupted runs by several processes, started by parallel_cases.py (``resume:CASE``).

Each case trains six steps, then four of the same steps anew from the checkpoint in the middle of the second epoch. Weights,
masks and logs must agree bit for bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sparsepo import SparsePOTrainer
from tests.support import tiny_model

from .fsdp_on_cpu import fsdp2_on_cpu
from .running import assert_same, build, logged, mask_state, policy_state, prepared_rows, run_config, steps_of


@dataclass(frozen=True)
class Case:
    """How a run is spread and what it trains."""

    architecture: str = "llama"
    lora: bool = False
    fsdp2: dict[str, str] | None = None  # changes of the environment; None: DDP
    settings: dict[str, Any] = field(default_factory=dict)


_SHARDED = {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
_INDEPENDENT = {"mask_sharing": "independent"}
CASES = {
    "ddp": Case(settings=_INDEPENDENT),
    "fsdp2": Case(fsdp2={}, settings=_INDEPENDENT),
    "fsdp2-tied": Case("gpt2", fsdp2={}),
    "fsdp2-lora": Case("gpt2", lora=True, fsdp2={}),
    "fsdp2-sharded": Case(fsdp2=_SHARDED),
    "fsdp2-lora-sharded": Case("gpt2", lora=True, fsdp2=_SHARDED),
    # as the shipped configuration has it: the first process alone reads the files
    "fsdp2-efficient-loading": Case(fsdp2={"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, settings=_INDEPENDENT),
}


def run_case(name: str, folder: Path, processes: int, rank: int) -> None:
    """Train, resume and compare; the first run's weights go to ``folder/name-policy.safetensors``."""
    case = CASES[name]
    model, output = folder / f"model-{case.architecture}", folder / name
    if rank == 0 and not model.is_dir():
        tiny_model(case.architecture).save_pretrained(model)
    torch.distributed.barrier()
    whole = _train(case, model, output, processes)
    found = policy_state(whole), mask_state(whole), last_steps(whole)
    if rank == 0:
        save_file(found[0], folder / f"{name}-policy.safetensors")
        save_file(found[1], folder / f"{name}-mask.safetensors")
    del whole
    again = _train(case, model, folder / f"{name}-again", processes, str(output / "checkpoint-4"))
    assert len(found[2]) == 2
    assert_same((policy_state(again), mask_state(again), last_steps(again)), found)


def last_steps(trainer: SparsePOTrainer) -> list[dict[str, Any]]:
    """What the steps after the checkpoint have logged."""
    return [entry for entry in steps_of(logged(trainer)) if entry["step"] > 4]


def _train(case: Case, model: Path, output: Path, processes: int, resume: str | None = None) -> SparsePOTrainer:
    context = nullcontext() if case.fsdp2 is None else fsdp2_on_cpu(**case.fsdp2)
    with context:
        rows = prepared_rows(output.parent / "rows", 11)
        config = run_config(
            output,
            **case.settings,
            per_device_train_batch_size=4 // processes,
            ddp_backend="gloo",
            ddp_timeout=60,
            learning_rate=2e-2,
            mask_learning_rate=0.1,
            mask_target_sparsity=0.4,
            lr_scheduler_type="linear",
            max_steps=6,
            save_strategy="steps",
            save_steps=4,
        )
        trainer = build(config, rows, lora=case.lora, model=str(model))
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(output))
        return trainer
