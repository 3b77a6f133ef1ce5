"""``sparsepo train`` from beginning to end by several processes under FSDP2, started by parallel_cases.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sparsepo.cli.main import main
from tests.cli.conftest import SHORT_RUN, write_rows
from tests.support import preference_rows, tiny_model, tiny_tokenizer

from .fsdp_on_cpu import fsdp2_on_cpu


def run_command(folder: Path, rank: int) -> None:
    """Train, evaluate during and after it, save, and write the pages, with the shipped configuration's way of loading."""
    if rank == 0:
        tiny_model("gpt2").save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")
        rows: list[list[dict[str, Any]]] = [list(preference_rows(count, seed=count)) for count in (16, 7)]  # type: ignore
        write_rows(folder / "pairs.jsonl", rows[0])
        write_rows(folder / "held_out.jsonl", rows[1])
    torch.distributed.barrier()
    with fsdp2_on_cpu(FSDP_CPU_RAM_EFFICIENT_LOADING="true"):
        status = main(
            [
                *("train", "--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")),
                *("--dataset_name", str(folder / "pairs.jsonl"), "--eval_dataset", str(folder / "held_out.jsonl")),
                *("--eval_strategy=epoch", *SHORT_RUN),
            ]
        )
    assert status == 0
