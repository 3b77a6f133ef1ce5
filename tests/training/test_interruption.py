"""Killed, terminated or interrupted: what is resumed ends with the weights of the run that was left alone, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sparsepo import SparsePOTrainer
from sparsepo.training import sealing

from .interrupted_runs import STEPS, command, finish, start, wait_for, weights, write_materials
from .running import assert_same, build, mask_state, policy_state, prepared_rows, run_config


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_materials(tmp_path_factory.mktemp("materials"))


@pytest.fixture(scope="module")
def whole(materials: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(command(*materials, out))
    return out


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 10)


def run_of(folder: Path, rows: Dataset) -> SparsePOTrainer:
    """Six steps over two epochs, a checkpoint after each, mask dropout and the model's own."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": 6, "mask_dropout": 0.3}
    return build(run_config(folder, disable_dropout=False, **settings), rows)


def trained(folder: Path, rows: Dataset) -> dict[str, torch.Tensor]:
    """A run up to its end, from its last whole checkpoint if there is one."""
    trainer = run_of(folder, rows)
    trainer.train(resume_from_checkpoint=sealing.last_whole(folder) is not None)
    return policy_state(trainer) | mask_state(trainer)


def killed(folder: Path, rows: Dataset, wait: Callable[[], None]) -> None:
    """Train in a process of its own until ``wait`` returns, then SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            trained(folder, rows)
        finally:
            os._exit(0)
    wait()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_killed_then_resumed_equals_undisturbed(tmp_path: Path, rows: Dataset) -> None:
    expected = trained(tmp_path / "whole", rows)

    def while_the_third_is_saved() -> None:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "checkpoint-3").is_dir() and time.monotonic() < deadline:
            time.sleep(0.001)

    killed(tmp_path / "out", rows, while_the_third_is_saved)
    last = sealing.last_whole(tmp_path / "out")
    assert last is not None
    assert last.name in ("checkpoint-2", "checkpoint-3")
    assert_same(trained(tmp_path / "out", rows), expected)


@pytest.mark.long
def test_killed_fifty_times_at_random_moments(tmp_path: Path, rows: Dataset) -> None:
    """Killed anywhere: building, training, saving, rotating. Each kill is followed by a resumed run, killed or not."""
    expected = trained(tmp_path / "whole", rows)
    began = time.monotonic()
    trained(tmp_path / "timed", rows)
    length = time.monotonic() - began
    rng = random.Random(7)
    kills, halves, resumed = int(os.environ.get("SPARSEPO_KILLS", "50")), 0, 0
    for number in range(kills):
        out = tmp_path / f"out-{number % 5}"
        killed(out, rows, lambda: time.sleep(length * rng.uniform(0.1, 1.1)))
        halves += any(sealing.problem_of(path) is not None for path in sealing.checkpoint_folders(out))
        if rng.random() < 0.5 or number >= kills - 5:  # the others go on being killed
            resumed += sealing.last_whole(out) is not None
            assert_same(trained(out, rows), expected)
            shutil.rmtree(out)
    print(f"{kills} kills, {halves} left a checkpoint that was not whole, {resumed} runs resumed from one")
    assert resumed


@pytest.mark.long
def test_the_command_killed_then_resumed_equals_undisturbed(
    materials: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
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
def test_a_signal_in_a_script_stops_it_after_a_checkpoint(
    tmp_path: Path, rows: Dataset, number: signal.Signals
) -> None:
    """The same through the trainer: its script does not go on as if training had ended."""
    from transformers import TrainerCallback

    from sparsepo.training.interruption import TrainingInterrupted

    class Sends(TrainerCallback):
        def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            if state.global_step == 1:  # type: ignore[attr-defined]
                signal.raise_signal(number)

    before = signal.getsignal(number)
    expected = build(run_config(tmp_path / "whole"), rows)
    expected.train()
    trainer = build(run_config(tmp_path / "out"), rows, callbacks=[Sends()])
    sealed: list[Path] = []
    trainer._complete = lambda folder: (sealed.append(folder), type(trainer)._complete(trainer, folder))  # type: ignore[method-assign]
    with pytest.raises(TrainingInterrupted, match="checkpoint-2; resume_from_checkpoint=auto goes on") as caught:
        trainer.train()
    assert [folder.name for folder in sealed].count("checkpoint-2") == 1  # and not again when the epoch ends
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is before
    resumed = build(run_config(tmp_path / "out"), rows)
    resumed.train(resume_from_checkpoint=True)
    assert_same(policy_state(resumed), policy_state(expected))


def test_the_second_signal_ends_at_once_but_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsepo.training import interruption

    clock = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: clock[0])
    with interruption.Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        clock[0] += interruption.ECHO / 2
        signal.raise_signal(signal.SIGTERM)  # the launcher's, of the same
        clock[0] += interruption.ECHO
        with pytest.raises(interruption.TrainingInterrupted, match="second time"):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_after_the_last_step_is_heard(tmp_path: Path, rows: Dataset) -> None:
    from transformers import TrainerCallback

    from sparsepo.training.interruption import TrainingInterrupted

    class Sends(TrainerCallback):
        def on_train_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
            signal.raise_signal(signal.SIGTERM)

    trainer = build(run_config(tmp_path / "out"), rows, callbacks=[Sends()])
    with pytest.raises(TrainingInterrupted, match="came after the last step") as caught:
        trainer.train()
    assert caught.value.status == 143


def test_checkpoints_of_a_course_that_was_left_do_not_overtake(tmp_path: Path, rows: Dataset) -> None:
    """Going on from an earlier checkpoint: later ones of the first course keep their files under another name."""
    out = tmp_path / "out"
    run_of(out, rows).train()
    last = sealing.last_whole(out)
    assert last is not None
    assert last.name == "checkpoint-6"
    again = run_of(out, rows)
    again.args.max_steps = 6
    again.train(resume_from_checkpoint=str(out / "checkpoint-5"))
    assert (out / "abandoned-checkpoint-6" / "model.safetensors").is_file()
    assert {path.name for path in sealing.checkpoint_folders(out)} == {"checkpoint-5", "checkpoint-6"}
