"""Interrupted and uninterrupted runs by several processes, started by parallel_cases.py (``resume:CASE``, ``stop``).

Each case trains six steps, then four of the same steps anew from the checkpoint in the middle of the second epoch. Weights,
masks and logs must agree bit for bit. ``stop`` has its steps and its evaluation ended by signals to single processes, and
its disk filled for one of them.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from sparsepo import SparsePOTrainer
from sparsepo.training import sealing
from sparsepo.training.interruption import TrainingInterrupted
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


class Sends(TrainerCallback):
    """Sends SIGTERM to this process where a step begins or ends, or after a batch of its evaluation."""

    def __init__(self, step: int, batch: int | None = None) -> None:
        self.step, self.batch = step, batch
        self.seen = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.batch is None and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += state.global_step == self.step
        if self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def run_stopped(folder: Path, rank: int) -> None:
    """Stopped in its evaluation by the second process's signal, then after a step by the first's; resumed each time."""
    whole = _stoppable(folder / "whole")
    whole.train()
    expected = policy_state(whole), mask_state(whole), _logs(whole)
    sends = Sends(2, batch=1 if rank == 1 else None)
    _stops(_stoppable(folder / "out"), sends if rank == 1 else Sends(-1), step=2)
    assert rank == 0 or sends.seen == 1  # of two batches
    # the signal comes after the processes have agreed on step 3: both make one more
    _stops(_stoppable(folder / "out"), Sends(3 if rank == 0 else -1), step=4, resume=True)
    resumed = _stoppable(folder / "out")
    resumed.train(resume_from_checkpoint=True)
    assert_same((policy_state(resumed), mask_state(resumed), _logs(resumed)), expected)


def run_full(folder: Path, rank: int) -> None:
    """One process after the other finds no room, at what only it writes: all of them stop with the reason."""
    for full, file in ((1, "rng_state_1.pth"), (0, "optimizer.pt"), (0, "model")):
        trainer = _stoppable(folder / f"full-{file}", save_strategy="steps", save_steps=1, load_best_model_at_end=True)
        with (
            _no_room(file if rank == full else "", at="checkpoint-2"),
            pytest.raises(sealing.CheckpointError) as caught,
        ):
            trainer.train()
        assert ("No space left" if rank == full else "another process says why") in str(caught.value)
        assert trainer.state.global_step == 2
        torch.distributed.barrier()
        assert [path.name for path in sealing.checkpoint_folders(trainer.args.output_dir)] == ["checkpoint-1"]


def _stoppable(output: Path, **settings: Any) -> SparsePOTrainer:
    config = run_config(
        output,
        **{"eval_strategy": "steps", "eval_steps": 1 if "save_steps" in settings else 2, **settings},
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        ddp_backend="gloo",
        ddp_timeout=60,
        max_steps=5,
        disable_dropout=False,
        mask_dropout=0.3,
    )
    rows = output.parent / "rows"
    return build(config, prepared_rows(rows, 11), eval_dataset=prepared_rows(rows, 7, seed=1))


def _stops(trainer: SparsePOTrainer, sends: Sends, step: int, resume: bool = False) -> None:
    trainer.add_callback(sends)
    with pytest.raises(TrainingInterrupted, match=f"SIGTERM: stopped after step {step}, which is saved"):
        trainer.train(resume_from_checkpoint=resume)
    torch.distributed.barrier()
    last = sealing.last_whole(trainer.args.output_dir)
    assert last is not None
    assert last.name == f"checkpoint-{step}"


def _logs(trainer: SparsePOTrainer) -> list[dict[str, Any]]:
    return [entry for entry in logged(trainer) if "train_loss" not in entry]


def _no_room(file: str, at: str) -> Any:
    """Writing one file of a checkpoint raises what a full disk raises; the model's where the file is ``model``."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if file == "model":
        save_model = SparsePOTrainer._save

        def model(self: Any, output_dir: Any = None, *args: Any) -> None:
            if at in str(output_dir):
                raise full
            save_model(self, output_dir, *args)

        return patch.object(SparsePOTrainer, "_save", model)
    save = torch.save

    def by_torch(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if file and at in str(path) and str(path).endswith(file):
            raise full
        save(content, path, *args, **kwargs)

    return patch.object(torch, "save", by_torch)
