"""Runs of the command in processes of their own, for the tests that kill them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support import preference_rows, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8


def command(model: Path, data: Path, out: Path, *flags: str) -> list[str]:
    """A run of eight steps that saves every second one, and goes on where there is something to go on with."""
    return [
        *(sys.executable, "-m", "sparsepo.cli.main", "train", "--model_name_or_path", str(model)),
        *("--dataset_name", str(data), "--output_dir", str(out), f"--max_steps={STEPS}", "--save_strategy=steps"),
        *("--save_steps=2", "--save_total_limit=2", "--resume_from_checkpoint=auto", "--learning_rate=1e-3"),
        *("--per_device_train_batch_size=4", "--logging_steps=1", "--report_to=none", "--use_cpu"),
        *("--activation_checkpointing=false", "--mask_dropout=0.2", "--lr_scheduler_type=cosine", "--seed=3"),
        *("--report=false", "--inspect_pairs=0", *flags),
    ]


def write_materials(folder: Path) -> tuple[Path, Path]:
    """A model and pairs."""
    tiny_model("gpt2").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [json.dumps(row) + "\n" for row in preference_rows(20)]
    (folder / "pairs.jsonl").write_text("".join(rows))
    return folder / "model", folder / "pairs.jsonl"


def environment() -> dict[str, str]:
    """One thread, offline, and this checkout's package."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, "PYTHONPATH": str(ROOT / "src")}


def start(arguments: list[str], new_session: bool = False) -> subprocess.Popen[str]:
    """A process whose output can be read, errors included; ``new_session``: the leader of a process group of its own."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=new_session,
    )


def finish(arguments: list[str]) -> str:
    """Run to the end; returns what was printed."""
    process = start(arguments)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what a process prints until a text appears; returns all that was read."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"{text!r} did not appear:\n{''.join(lines)}")


def weights(out: Path) -> dict[str, torch.Tensor]:
    """All that training has changed, mask included."""
    return load_file(out / "model.safetensors") | load_file(out / "mask" / "mask.safetensors")
