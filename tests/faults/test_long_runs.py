"""Memory stays where it is: over 2,000 steps, and over a million rows that are read one by one."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from sparsepo import SparsePOConfig, SparsePOTrainer
from sparsepo.cli.main import main
from tests.support import preference_rows, tiny_model, tiny_tokenizer


def resident() -> float:
    """Memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    pytest.skip("/proc/self/status does not say how much memory a process has")


class Memory(TrainerCallback):
    """Memory after some steps."""

    def __init__(self, every: int) -> None:
        self.every, self.found = every, dict[int, float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            gc.collect()
            self.found[state.global_step] = resident()


@pytest.mark.long
def test_memory_does_not_grow_over_two_thousand_steps(tmp_path: Path) -> None:
    """Learned masks with a target sparsity, the monitor, the fit, logging and evaluation: everything that adds up."""
    memory = Memory(100)
    config = SparsePOConfig(
        str(tmp_path),
        max_steps=2_000,
        per_device_train_batch_size=2,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=500,
        save_strategy="steps",
        save_steps=1_000,
        save_total_limit=1,
        mask_target_sparsity=0.5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        activation_checkpointing=False,
    )
    rows = preference_rows(64)
    trainer = SparsePOTrainer(
        tiny_model("gpt2"),
        args=config,
        train_dataset=rows,
        eval_dataset=preference_rows(8, seed=1),
        processing_class=tiny_tokenizer(),
        callbacks=[memory],
    )
    trainer.train()
    print({step: round(value, 1) for step, value in memory.found.items()})
    first, last = memory.found[500], memory.found[2_000]
    assert last - first < 8, f"{last - first:.1f} MiB in 1,500 steps: {memory.found}"


def write_pairs(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"prompt": f"film {number}", "chosen": f" good {number}", "rejected": f" bad {number}"}
            file.write(json.dumps(row) + "\n")


@pytest.mark.long
def test_a_million_rows_stream(tmp_path: Path) -> None:
    """Read one by one in constant memory, and a run that begins at once."""
    from sparsepo.data import load_preference_data

    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 1_000_000)
    stream = iter(load_preference_data(path, streaming=True))
    for _ in range(10_000):
        next(stream)
    before = resident()
    count = 10_000 + sum(1 for _ in stream)
    grown = resident() - before
    print(f"{count:,} rows, {grown:.1f} MiB more")
    assert count == 1_000_000
    assert grown < 30


@pytest.mark.long
def test_a_million_rows_are_checked_in_little_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What grows is the list of checksums by which duplicates are found."""
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 1_000_000)
    before = resident()
    assert main(["data", "check", str(path), "--streaming"]) == 0
    grown = resident() - before
    print(f"{grown:.1f} MiB more")
    assert "1,000,000" in capfd.readouterr().out
    assert grown < 400


def test_a_stream_is_checked_as_a_whole_file_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, reports = tmp_path / "pairs.jsonl", []
    write_pairs(path, 30)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "a", "chosen": " b", "rejected": " b"}) + "\n")
    for flags in ([], ["--streaming"]):
        out = tmp_path / f"clean{len(flags)}.jsonl"
        assert main(["data", "check", str(path), "--json", "-", "--output", str(out), *flags]) == 0
        found = json.loads(capfd.readouterr().out)
        reports.append({name: found[name] for name in ("rows", "kept", "dropped", "findings")})
        assert len(out.read_text().splitlines()) == 30
    assert reports[0] == reports[1]
    failed = main(
        ["data", "check", str(path), "--streaming", "--max_dropped", "0", "--output", str(tmp_path / "x.jsonl")]
    )
    assert failed == 1
    assert not (tmp_path / "x.jsonl").exists()
