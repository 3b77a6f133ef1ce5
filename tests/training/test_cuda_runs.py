"""Whole runs on a GPU: mixed precision, the reference cache, the shared prefix, Triton's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsepo.scoring import fused
from sparsepo.scoring.rows import TorchRows

from .cache_runs import LEARNED, trainer_of
from .running import logged, prepared_rows

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
