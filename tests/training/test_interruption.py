"""Killed, terminated or interrupted: what is resumed ends with the weights of the run that was left alone, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from sparsepo.training import sealing
from tests.support import preference_rows, tiny_model, tiny_tokenizer

from .interrupted_runs import STEPS, command, finish, kill_after, start, wait_for, weights
from .running import assert_same, build, policy_state, prepared_rows, run_config


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and pairs."""
    folder = tmp_path_factory.mktemp("materials")
    tiny_model("gpt2").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [json.dumps(row) + "\n" for row in preference_rows(20)]
    (folder / "pairs.jsonl").write_text("".join(rows))
    return folder / "model", folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def whole(materials: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(command(*materials, out))
    return out


def test_killed_then_resumed_equals_undisturbed(materials: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(command(*materials, out))
    wait_for(process, "step 5/8")
    process.kill()
    process.communicate()
    assert not (out / "train_summary.json").exists()
    assert sealing.last_whole(out) is not None
    finish(command(*materials, out))
    assert_same(weights(out), weights(whole))


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_then_exits_with_its_status(
    materials: tuple[Path, Path], whole: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    process = start(command(*materials, out))
    wait_for(process, "step 3/8")
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    last = sealing.last_whole(out)
    assert last is not None
    assert f"{number.name}: stopped after step {last.name.split('-')[1]}, which is saved in {last}" in output
    assert "Traceback" not in output
    assert int(last.name.split("-")[1]) < STEPS
    if number == signal.SIGTERM:
        finish(command(*materials, out))
        assert_same(weights(out), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_script_stops_it_after_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """The same through the trainer: its script does not go on as if training had ended."""
    from transformers import TrainerCallback

    from sparsepo.training.interruption import TrainingInterrupted

    class Sends(TrainerCallback):
        def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            if state.global_step == 1:  # type: ignore[attr-defined]
                signal.raise_signal(number)

    rows = prepared_rows(tmp_path / "rows", 10)
    before = signal.getsignal(number)
    expected = build(run_config(tmp_path / "whole"), rows)
    expected.train()
    trainer = build(run_config(tmp_path / "out"), rows, callbacks=[Sends()])
    with pytest.raises(TrainingInterrupted, match="checkpoint-2; resume_from_checkpoint=auto goes on") as caught:
        trainer.train()
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is before
    resumed = build(run_config(tmp_path / "out"), rows)
    resumed.train(resume_from_checkpoint=True)
    assert_same(policy_state(resumed), policy_state(expected))


def test_the_second_signal_ends_at_once() -> None:
    from sparsepo.training.interruption import Signals, TrainingInterrupted

    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(TrainingInterrupted, match="second time"):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.long
def test_killed_fifty_times_at_random_moments(materials: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    """Killed anywhere: importing, saving, rotating, summing up. Each kill is followed by a resumed run, killed or not."""
    import time

    rng = random.Random(7)
    expected = weights(whole)
    began = time.monotonic()
    finish(command(*materials, tmp_path / "timed"))
    length = time.monotonic() - began
    kills = runs = while_saving = 0
    while kills < 50:
        out = tmp_path / f"out-{runs}"
        runs += 1
        while True:
            # mostly while it trains and saves, which is the later half
            process = start(command(*materials, out, "--overwrite_output_dir"))
            limit = length * rng.uniform(0.3, 1.05)
            if kills < 50 and kill_after(process, limit):
                kills += 1
                folders = sealing.checkpoint_folders(out)
                while_saving += any(sealing.problem_of(path) for path in folders)
                continue
            break
        if not (out / "train_summary.json").exists():
            finish(command(*materials, out, "--overwrite_output_dir"))
        assert_same(weights(out), expected)
        shutil.rmtree(out)
    print(f"{kills} kills in {runs} runs, {while_saving} left a checkpoint that was not whole")
