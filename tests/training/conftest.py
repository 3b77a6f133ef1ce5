"""Fixtures of the trainer's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset

from sparsepo import SparsePOConfig, SparsePOTrainer
from tests.support import preference_rows, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _quick_collection() -> Iterator[None]:
    """Trainer collects garbage at the start of every run: keep the imported libraries out of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Tokenised rows with weights a token, prepared once by the trainer itself from weights by character spans."""

    def spans(row: dict[str, Any]) -> dict[str, Any]:
        return {f"{side}_weights": [[0, 6, 1.5], [6, 9, 0.25]] for side in ("chosen", "rejected")}

    folder = tmp_path_factory.mktemp("rows")
    config = SparsePOConfig(str(folder), mask="data", report_to="none", use_cpu=True)
    raw = preference_rows(8).map(spans)
    trainer = SparsePOTrainer(tiny_model("gpt2"), args=config, train_dataset=raw, processing_class=tiny_tokenizer())
    return trainer.train_dataset
