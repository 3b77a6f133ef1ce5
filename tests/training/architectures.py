"""What the tests of all architectures share: a trainer of two steps, a batch, comparison of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from sparsepo import SparsePOConfig, SparsePOTrainer
from sparsepo.objectives import PairScores
from tests.support import ARCHITECTURES, tiny_tokenizer

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES)


def trainer_of(
    model: nn.Module,
    folder: Path,
    rows: Dataset,
    ref_model: nn.Module | None = None,
    peft_config: Any = None,
    masker: Any = None,
    **settings: Any,
) -> SparsePOTrainer:
    config = SparsePOConfig(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "use_cpu": True,
            **settings,
        },
    )
    return SparsePOTrainer(
        model,
        ref_model,
        config,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        mask=masker,
    )


def batch_of(trainer: SparsePOTrainer, rows: Dataset) -> dict[str, Any]:
    return trainer.data_collator([rows[index] for index in (1, 4, 6)])


def assert_same_scores(one: PairScores, other: PairScores, names: tuple[str, ...], **tolerance: float) -> None:
    """Equal at response tokens, whatever columns these stand in."""
    for side in ("chosen", "rejected"):
        mine, theirs = getattr(one, side), getattr(other, side)
        assert torch.equal(mine.lengths(), theirs.lengths())
        for name in names:
            left, right = getattr(mine, name), getattr(theirs, name)
            assert left is not None, name
            torch.testing.assert_close(
                left[mine.response_mask],
                right[theirs.response_mask],
                **{"rtol": 1e-4, "atol": 2e-5, **tolerance},
                msg=lambda m, n=name, s=side: f"{n} of {s}: {m}",
            )


SCORES = ("policy_logps", "ref_logps", "kl", "reward_mask", "kl_mask")
