"""The trainer of a run: what all runs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsepo.playground.models import quieten

Rows = list[dict[str, Any]]


def build_trainer(
    model: Any,
    reference: Any,
    tokenizer: Any,
    train_rows: Rows,
    held_out_rows: Rows,
    settings: Mapping[str, Any],
    *,
    output_dir: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    mask: Any = None,
) -> Any:
    """A :class:`SparsePOTrainer` that saves nothing and logs 25 times: cosine schedule after a tenth of warm-up, float32.

    Args:
        model, reference, tokenizer: as the trainer takes them; reference None: loaded as the model is.
        train_rows, held_out_rows: pairs in TRL's preference format.
        settings: further settings of ``SparsePOConfig``; what is not given is the library's default.
        output_dir: for what the trainer writes (the health monitor's file).
        steps, batch_size, learning_rate, seed: of training.
        mask: a masker to use instead of the one that the settings describe.
    """
    from datasets import Dataset

    from sparsepo.training import SparsePOConfig, SparsePOTrainer

    common: dict[str, Any] = {
        "output_dir": output_dir,
        "learning_rate": learning_rate,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 32,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,
        "bf16": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": max(steps // 25, 1),
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }
    trainer = SparsePOTrainer(
        model=model,
        ref_model=reference,
        args=SparsePOConfig(**{**common, **settings}),
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(held_out_rows),
        processing_class=tokenizer,
        mask=mask,
    )
    quieten(trainer)
    return trainer
