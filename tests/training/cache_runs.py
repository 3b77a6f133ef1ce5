"""Runs with and without a reference cache, for the tests of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from sparsepo import SparsePOTrainer
from sparsepo.training import token_loss
from sparsepo.training.caching import store
from tests.support import perturbed, tiny_model, tiny_tokenizer

from .running import run_config

# Plain gradient steps: Adam would turn the rounding of a first step whose true gradient is zero into whole steps
SGD = {"optim": "sgd", "learning_rate": 0.3, "share_prefix": "off"}
LEARNED = {"mask_learning_rate": 1.0, "mask_dropout": 0.3}


def trainer_of(
    folder: Path,
    rows: Dataset,
    *,
    architecture: str = "gpt2",
    lora: bool | LoraConfig = False,
    cache: Path | None = None,
    eval_dataset: Any = None,
    models: dict[str, Any] | None = None,
    **settings: Any,
) -> SparsePOTrainer:
    """A trainer whose policy has left the reference; ``cache``: folder of the cache."""
    if models is None:
        reference = tiny_model(architecture, head_scale=3.0)
        models = {"model": reference} if lora else {"model": perturbed(reference), "ref_model": reference}
    if cache is not None:
        settings |= {"precompute_ref": True, "precompute_ref_dir": str(cache)}
    torch.manual_seed(0)  # of the adapter
    trainer = SparsePOTrainer(
        args=run_config(folder, **{**SGD, **settings}),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=tiny_tokenizer(),
        peft_config=adapter() if lora is True else lora or None,
        **models,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def fill(folder: Path, rows: Dataset, cache: Path, **settings: Any) -> SparsePOTrainer:
    """A trainer with a learned mask, whose cache is filled while it is made."""
    return trainer_of(folder, rows, cache=cache, **{**LEARNED, **settings})


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows in a file."""
    monkeypatch.setattr(store, "ROWS_OF_A_FILE", 2)


def adapter(**settings: Any) -> LoraConfig:
    """LoRA that starts away from the reference: at equality signs of rewards would be signs of rounding."""
    return LoraConfig(**{"r": 2, "lora_alpha": 8, "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings})


def saved_model(folder: Path, architecture: str = "gpt2", seed: int = 0) -> str:
    """A model on disk, as from_pretrained reads it."""
    tiny_model(architecture, seed, head_scale=3.0).save_pretrained(folder)
    return str(folder)


def files_of(cache: Path) -> dict[str, bytes]:
    """Relative path → content of every file of a cache."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def row_files(cache: Path) -> list[Path]:
    """The files with rows."""
    return sorted(cache.rglob("rows-*.safetensors"))


class ReferenceCalls:
    """Counts how often a reference is run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        run = token_loss.reference_view

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return run(*args, **kwargs)

        monkeypatch.setattr(token_loss, "reference_view", counted)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> ReferenceCalls:
    """How often the reference has been run."""
    return ReferenceCalls(monkeypatch)
