"""Whole runs on a GPU: mixed precision, the reference cache, the shared prefix, Triton's rows, resuming, one process
under DDP and FSDP2, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from sparsepo import load_mask
from sparsepo.scoring import fused
from sparsepo.scoring.rows import TorchRows
from tests.cli.conftest import SHORT_RUN, write_rows
from tests.support import WORDS, preference_rows, tiny_model, tiny_tokenizer

from .cache_runs import LEARNED, trainer_of
from .running import PLAIN_HEAD, build, logged, policy_state, prepared_rows, run_config, steps_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sparsepo": LEARNED,
    "mapo": {"objective": "mapo"},
    "tdpo2": {"objective": "tdpo2"},
    "anchor": {"objective": "dpo", "kl_anchor": 0.1},
}
NAMES = ("loss", "rewards/margins", "kl/chosen", "logps/chosen", "grad_norm")


def run(folder: Path, **settings: Any) -> list[dict[str, float]]:
    rows = prepared_rows(folder / "rows", 7)
    trainer = trainer_of(folder, rows, use_cpu=False, **settings)
    trainer.train()
    return logged(trainer)


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    assert len(found) == len(expected) > 1
    for mine, theirs in zip(found, expected, strict=True):
        for name in NAMES:
            assert (name in mine) == (name in theirs)
            if name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_cached_equals_uncached(tmp_path: Path, name: str, lora: bool, bf16: bool) -> None:
    settings = {"architecture": "llama", "lora": lora, "bf16": bf16, **OBJECTIVES[name]}
    expected = run(tmp_path / "uncached", **settings)
    found = run(tmp_path / "cached", cache=tmp_path / "cache", **settings)
    assert_alike(found, expected, 2e-2 if bf16 else 1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_shared_prefix_changes_nothing(tmp_path: Path, architecture: str, checkpointing: bool) -> None:
    settings = {"architecture": architecture, "gradient_checkpointing": checkpointing, "bf16": False, **LEARNED}
    expected = run(tmp_path / "off", share_prefix="off", **settings)
    assert_alike(run(tmp_path / "on", share_prefix="on", **settings), expected, 1e-3)


def test_triton_and_torch_rows_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"architecture": "llama", "bf16": True, **LEARNED}
    found = run(tmp_path / "triton", **settings)
    monkeypatch.setattr(fused, "row_backend", lambda device: TorchRows)
    assert_alike(found, run(tmp_path / "torch", **settings), 2e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_goes_on_as_the_uninterrupted(tmp_path: Path, lora: bool) -> None:
    """Weights, states and random numbers come back; sums on a GPU may differ in their last bits."""
    rows = prepared_rows(tmp_path / "rows", 7)
    settings = {
        "architecture": "llama",
        "lora": lora,
        "bf16": True,
        "save_strategy": "steps",
        "save_steps": 2,
        **LEARNED,
    }
    settings |= {"optim": "adamw_torch", "learning_rate": 1e-3, "mask_learning_rate": 1e-3, "max_steps": 4}
    whole = trainer_of(tmp_path / "run", rows, use_cpu=False, **settings)
    whole.train()
    resumed = trainer_of(tmp_path / "run", rows, use_cpu=False, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_alike(list(steps_of(logged(resumed))), list(steps_of(logged(whole))), 1e-3)
    weights = policy_state(whole)
    for name, value in policy_state(resumed).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)


def test_fp16_leaves_out_steps_whose_gradients_overflow(tmp_path: Path) -> None:
    settings = {"architecture": "llama", "bf16": False, "max_steps": 12, "learning_rate": 1e-2, **LEARNED, **PLAIN_HEAD}
    rows = prepared_rows(tmp_path / "rows", 7)
    trainer = trainer_of(tmp_path / "half", rows, use_cpu=False, fp16=True, **settings)
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.train()
    steps = list(steps_of(logged(trainer)))
    assert trainer.accelerator.scaler.get_scale() < 2.0**40  # some overflowed
    assert steps[0]["loss"] == pytest.approx(run(tmp_path / "full", **settings)[0]["loss"], rel=1e-2)
    assert all(torch.isfinite(value).all() for value in policy_state(trainer).values())


def test_one_device_by_ddp_and_by_fsdp2(tmp_path: Path) -> None:
    """The command with the shipped configurations, over NCCL: what FSDP2 logs and saves is what one process does."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "pairs.jsonl", list(preference_rows(16)))
    logs = {}
    for name in ("alone", "ddp", "fsdp2"):
        command = [sys.executable, "-m", "sparsepo.cli.main", "train", "--model_name_or_path", str(tmp_path / "model")]
        command += [
            "--dataset_name",
            str(tmp_path / "pairs.jsonl"),
            "--output_dir",
            str(tmp_path / name),
            "--bf16=true",
        ]
        command += [flag for flag in SHORT_RUN if flag not in ("--use_cpu", "--save_strategy=no")]
        command += ["--save_strategy=steps", "--save_steps=2", "--dtype=float32"]
        if name != "alone":
            command += ["--accelerate_config", name, "--num_processes", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        state = json.loads((tmp_path / name / "checkpoint-2" / "trainer_state.json").read_text())
        logs[name] = list(steps_of(state["log_history"]))
        AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert load_mask(tmp_path / name).is_trainable
    assert_alike(logs["ddp"], logs["alone"], 2e-2)
    assert_alike(logs["fsdp2"], logs["alone"], 2e-2)


class Allocated(TrainerCallback):
    """Bytes of tensors after each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen.append(torch.cuda.memory_allocated())


def test_memory_does_not_grow(tmp_path: Path) -> None:
    rows = prepared_rows(tmp_path / "rows", 40)
    trainer = trainer_of(tmp_path / "run", rows, use_cpu=False, max_steps=400, logging_steps=50, bf16=True, **LEARNED)
    watch = Allocated()
    trainer.add_callback(watch)
    trainer.train()
    assert len(watch.seen) == 400
    assert max(watch.seen[200:]) <= max(watch.seen[50:200]) + 2**20


def test_a_pair_of_100_000_tokens(tmp_path: Path) -> None:
    words = [" ".join(WORDS[(index * step) % len(WORDS)] for index in range(100_000)) for step in (1, 3)]
    rows = Dataset.from_list([{"prompt": "the film", "chosen": " " + words[0], "rejected": " " + words[1]}] * 2)
    settings = {"use_cpu": False, "per_device_train_batch_size": 1, "max_steps": 2, "max_length": 120_000, "beta": 1e-4}
    model = tiny_model("llama", max_position_embeddings=120_000)
    trainer = build(run_config(tmp_path, bf16=True, gradient_checkpointing=True, **settings), rows, model=model)
    trainer.train()
    steps = list(steps_of(logged(trainer)))
    assert len(steps) == 2
    assert all(steps[1][f"logps/{side}"] < -100_000 for side in ("chosen", "rejected"))
