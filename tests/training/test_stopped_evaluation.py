"""A signal in an evaluation ends it at its next batch; the run that goes on equals the undisturbed one, logs included."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from sparsepo import SparsePOTrainer
from sparsepo.training import sealing
from sparsepo.training.interruption import TrainingInterrupted
from sparsepo.training.stopping import EVALUATION_DUE

from .running import assert_same, build, logged, mask_state, policy_state, prepared_rows, run_config


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 10)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Two sets of two batches each."""
    folder = tmp_path_factory.mktemp("held_out")
    return {name: prepared_rows(folder, 7, seed) for seed, name in ((1, "first"), (2, "second"))}


class SendsInEvaluation(TrainerCallback):
    """Sends SIGTERM after a batch of the evaluation at a step, and counts the batches that follow."""

    def __init__(self, step: int, batch: int) -> None:
        self.step, self.batch = step, batch
        self.seen = 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.seen += 1
            if self.seen == self.batch:
                signal.raise_signal(signal.SIGTERM)


class SendsAfterStep(TrainerCallback):
    """Sends SIGTERM before the evaluation at a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def run_of(folder: Path, rows: Dataset, held_out: dict[str, Dataset], **settings: Any) -> SparsePOTrainer:
    """Four steps, three an epoch, with the model's own dropout and the mask's: whatever draws a number shows."""
    chosen = {"disable_dropout": False, "mask_dropout": 0.3, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    config = run_config(folder, **{**chosen, **settings})
    return build(config, rows, eval_dataset=held_out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, rows: Dataset, held_out: dict[str, Dataset]) -> dict[str, Any]:
    """Outcome of the run with the usual settings that nothing disturbs."""
    trainer = run_of(tmp_path_factory.mktemp("whole"), rows, held_out)
    trainer.train()
    return outcome(trainer)


def resumed(folder: Path, rows: Dataset, held_out: dict[str, Dataset], **settings: Any) -> dict[str, Any]:
    """Outcome of a run that goes on from its last checkpoint."""
    trainer = run_of(folder, rows, held_out, **settings)
    trainer.train(resume_from_checkpoint=True)
    return outcome(trainer)


def outcome(trainer: SparsePOTrainer) -> dict[str, Any]:
    """Weights, logs of steps and evaluations, and what the health monitor remembers."""
    assert trainer.mask_monitor is not None
    entries = [entry for entry in logged(trainer) if "train_loss" not in entry]
    return {
        "weights": policy_state(trainer) | mask_state(trainer),
        "logs": entries,
        "health": trainer.mask_monitor.memory()["state"],
        "best": trainer.state.best_metric,
    }


def stopped(trainer: SparsePOTrainer, callback: TrainerCallback, step: int) -> Path:
    """Train until the callback's signal ends it; returns its last checkpoint."""
    trainer.add_callback(callback)
    with pytest.raises(TrainingInterrupted, match=f"SIGTERM: stopped after step {step}, which is saved") as caught:
        trainer.train()
    assert caught.value.status == 143
    assert trainer.state.global_step == step
    last = sealing.last_whole(trainer.args.output_dir)
    assert last is not None
    assert last.name == f"checkpoint-{step}"
    return last


@pytest.mark.parametrize(
    ("step", "batch"),
    [
        (2, 1),  # the first of two sets
        (2, 3),  # the second one: nothing is kept of the first
        (4, 2),  # after the last step, in the middle of an epoch
    ],
)
def test_it_ends_at_the_next_batch_and_is_made_up_for(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset], whole: dict[str, Any], step: int, batch: int
) -> None:
    sends = SendsInEvaluation(step, batch)
    last = stopped(run_of(tmp_path, rows, held_out), sends, step)
    assert sends.seen == batch
    assert (last / EVALUATION_DUE).is_file()
    assert_same(resumed(tmp_path, rows, held_out), whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"save_strategy": "steps", "save_steps": 1},  # the step's checkpoint is there already
        {"max_steps": 3},  # nothing is left to do but to evaluate
    ],
)
def test_at_the_end_of_an_epoch(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset], settings: dict[str, Any]
) -> None:
    settings = {"eval_strategy": "epoch", **settings}
    trainer = run_of(tmp_path / "whole", rows, held_out, **settings)
    trainer.train()
    stopped(run_of(tmp_path / "out", rows, held_out, **settings), SendsInEvaluation(3, 3), 3)
    assert_same(resumed(tmp_path / "out", rows, held_out, **settings), outcome(trainer))


def test_one_that_a_signal_forestalled_is_made_up_for(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset], whole: dict[str, Any]
) -> None:
    stopped(run_of(tmp_path, rows, held_out), SendsAfterStep(2), 2)
    again = run_of(tmp_path, rows, held_out)  # and may be stopped while it is made up for
    again.add_callback(SendsInEvaluation(2, 2))
    with pytest.raises(TrainingInterrupted, match=r"stopped before a step was made; .*checkpoint-2 goes on"):
        again.train(resume_from_checkpoint=True)
    assert_same(resumed(tmp_path, rows, held_out), whole)


def test_after_the_last_batch_of_the_last_step(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset], whole: dict[str, Any]
) -> None:
    """Too late to end the evaluation; the step is saved although no saving was asked for."""
    last = stopped(run_of(tmp_path, rows, held_out), SendsInEvaluation(4, 4), 4)
    assert not (last / EVALUATION_DUE).exists()
    assert_same(resumed(tmp_path, rows, held_out), whole)


def test_no_evaluation_is_due_in_the_middle_of_an_epoch(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset]
) -> None:
    last = stopped(run_of(tmp_path, rows, held_out, eval_strategy="epoch"), SendsAfterStep(2), 2)
    assert not (last / EVALUATION_DUE).exists()


def test_what_follows_from_it_follows(tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset]) -> None:
    """Early stopping, the best step and the best checkpoint, of an evaluation that is made up for."""

    def run(folder: Path) -> SparsePOTrainer:
        names = {"metric_for_best_model": "eval_first_rewards/margins", "greater_is_better": True}
        saving = {"save_strategy": "steps", "save_steps": 1, "eval_steps": 1, "load_best_model_at_end": True}
        trainer = run_of(folder, rows, held_out, **names, **saving)
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
        return trainer

    whole = run(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 2  # held-out margins fall: the second evaluation is no better
    stopped(run(tmp_path / "out"), SendsInEvaluation(2, 3), 2)
    again = run(tmp_path / "out")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    assert Path(again.state.best_model_checkpoint).name == Path(whole.state.best_model_checkpoint).name
    assert_same(outcome(again), outcome(whole))


def test_before_the_first_step_there_is_nothing_to_save(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset]
) -> None:
    trainer = run_of(tmp_path, rows, held_out, eval_on_start=True)
    trainer.add_callback(SendsInEvaluation(0, 1))
    with pytest.raises(TrainingInterrupted, match="stopped before the first step; there is nothing to save"):
        trainer.train()
    assert sealing.checkpoint_folders(tmp_path) == []
    assert not trainer.is_in_train


def test_evaluating_draws_no_random_number(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset], whole: dict[str, Any]
) -> None:
    never = run_of(tmp_path, rows, held_out, eval_strategy="no")
    never.train()
    assert_same(policy_state(never) | mask_state(never), whole["weights"])


def test_a_finished_run_that_is_resumed_makes_no_step(tmp_path: Path, rows: Dataset) -> None:
    """Its last step lies in the middle of an epoch, of which Trainer would go on with the next one."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    first = build(run_config(tmp_path, **settings), rows)
    first.train()
    again = build(run_config(tmp_path, **settings), rows)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert_same(policy_state(again) | mask_state(again), policy_state(first) | mask_state(first))


def test_outside_of_training_an_evaluation_is_not_touched(
    tmp_path: Path, rows: Dataset, held_out: dict[str, Dataset]
) -> None:
    """A signal after training keeps the effect that the process gave it."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        trainer = run_of(tmp_path, rows, held_out, max_steps=1)
        trainer.train()
        sends = SendsInEvaluation(1, 1)
        trainer.add_callback(sends)
        metrics = trainer.evaluate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert sends.seen == 4
    assert "eval_second_loss" in metrics
