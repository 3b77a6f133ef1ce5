"""Short runs on the CPU for the tests of checkpoints, batching and processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback

from sparsepo import SparsePOConfig, SparsePOTrainer
from sparsepo.training.step import MASK_ATTRIBUTE
from tests.support import preference_rows, tiny_model, tiny_tokenizer

# Trainer's clocks
_TIMES = ("runtime", "per_second", "preparation_time")


# The head that the preference loss alone teaches, for tests that move it with huge rates
PLAIN_HEAD: dict[str, Any] = {"mask_log_ratio_weight": 0.0, "mask_map": "linear"}


def run_config(folder: Path | str, **settings: Any) -> SparsePOConfig:
    """A run on the CPU that logs every step and saves nothing."""
    return SparsePOConfig(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "log_level": "error",
            "use_cpu": True,
            **settings,
        },
    )


def prepared_rows(folder: Path, count: int, seed: int = 0) -> Dataset:
    """Tokenised rows, so that trainers built on them skip the preparation. They keep ``chosen_weights``."""

    def weights(row: dict[str, Any], index: int) -> dict[str, Any]:
        sides = ("chosen", "rejected")
        return {f"{side}_weights": [((index + t) % 4) / 2 for t in range(len(row[side].split()))] for side in sides}

    raw = preference_rows(count, seed).map(weights, with_indices=True)
    return build(run_config(folder, mask="data"), raw).train_dataset


def build(config: SparsePOConfig, rows: Any, *, lora: bool = False, **arguments: Any) -> SparsePOTrainer:
    """A trainer of a fresh tiny GPT-2, fully or by LoRA."""
    arguments.setdefault("model", tiny_model("gpt2"))
    trainer = SparsePOTrainer(
        args=config,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=8, lora_dropout=0.1, task_type="CAUSAL_LM") if lora else None,
        **arguments,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def policy_state(trainer: SparsePOTrainer) -> dict[str, torch.Tensor]:
    """The policy's trainable weights without the mask head's; sharded ones are gathered."""
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {name: whole(p.detach()).clone() for name, p in named if p.requires_grad and MASK_ATTRIBUTE not in name}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full value of a tensor that FSDP2 may have in shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mask_state(trainer: SparsePOTrainer) -> dict[str, torch.Tensor]:
    """The mask head's weights."""
    assert trainer.masker is not None
    return {name: value.detach().clone() for name, value in trainer.masker.state_dict().items()}


def logged(trainer: SparsePOTrainer, after: int = 0) -> list[dict[str, Any]]:
    """Everything logged after a step, without the clocks."""
    return [without_clocks(entry) for entry in trainer.state.log_history if entry["step"] > after]


def without_clocks(entry: dict[str, Any]) -> dict[str, Any]:
    """Metrics that do not depend on the machine."""
    return {name: value for name, value in entry.items() if not any(word in name for word in _TIMES)}


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Bit for bit, through dicts, lists and tensors."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), f"{where}: {(left - right).abs().max()}"
    else:
        assert left == right, f"{where}: {left!r} and {right!r}"


def assert_close(left: dict[str, Any], right: dict[str, Any], rtol: float, atol: float) -> None:
    """Equal names, values equal up to rounding."""
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    for name in left:
        a, b = (torch.as_tensor(x[name], dtype=torch.float64) for x in (left, right))
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Largest change of any weight."""
    return max(float((after[name] - value.detach()).abs().max()) for name, value in before.items())


def steps_of(history: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The entries that training steps logged."""
    return (entry for entry in history if "rewards/margins" in entry)
