"""Stopping a run at a signal: after the step or the evaluation's batch under way, with a checkpoint, all processes alike.

An evaluation that a signal ended, or that was left out for one, is made up for when the run goes on: the checkpoint says
that it is due.
"""

from __future__ import annotations

import copy
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import ExportableState

from . import sealing
from .interruption import Signals, TrainingInterrupted
from .randomness import nothing_drawn
from .workers import shield_workers

logger = logging.getLogger(__name__)

EVALUATION_DUE = "evaluation_due.json"  # in a checkpoint: the evaluation of its step has not been made


class EvaluationEnded(BaseException):
    """A signal has ended an evaluation of the training loop. Never leaves the trainer."""


class StopsOnSignal:
    """The parts of a Trainer that hear signals. Mixed into the trainer before TRL's class."""

    # set by the trainer, or Trainer's own
    accelerator: Any
    args: Any
    callback_handler: Any
    control: Any
    model: Any
    state: Any
    _signals: Signals = Signals()  # of a run; this one hears nothing
    _stop_signal = 0  # that all processes know of
    _saved_step = -1  # of the last checkpoint that this run has saved
    _resumed_from: str | None = None
    _knows_by_flags = False  # whether the steps' flags tell all processes of a signal
    _may_end = False  # the evaluation under way
    _is_due = False  # an evaluation of the step made last
    _left_out = False  # an evaluation of the step made last, for a signal

    def _begin_listening(self, checkpoint: str | None) -> None:
        """Before a run: forget the last one, and see whether the checkpoint lacks an evaluation. A collective call."""
        self._stop_signal, self._left_out = 0, False
        self._saved_step, self._resumed_from = -1, checkpoint
        self._is_due = bool(self._largest(float(checkpoint is not None and Path(checkpoint, EVALUATION_DUE).is_file())))

    def _largest(self, value: float) -> float:
        """Of all processes. A collective call."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())

    def _signal_of_any_process(self) -> int:
        """The signal that any process has received, 0 for none. A collective call."""
        return int(self._largest(float(self._signals.received or 0)))

    def _interruption(self) -> TrainingInterrupted:
        """What a run that a signal has stopped ends with."""
        name, step, folder = signal.Signals(self._stop_signal).name, self.state.global_step, self.args.output_dir
        if self._saved_step == step:
            told = f"stopped after step {step}, which is saved in {folder}/checkpoint-{step}; "
            told += "resume_from_checkpoint=auto goes on with it."
        elif self._resumed_from is not None:
            told = f"stopped before a step was made; resume_from_checkpoint={self._resumed_from} goes on as before."
        else:
            told = "stopped before the first step; there is nothing to save yet."
        return TrainingInterrupted(self._stop_signal, f"{name}: {told}")

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; the workers leave it to the trainer to hear signals."""
        return shield_workers(super()._get_dataloader(*args, **kwargs))  # type: ignore[misc]

    # ---- between steps ----

    def _local_flags(self, norm: Any) -> list[Any]:
        return [*super()._local_flags(norm), self._signals.received or 0]  # type: ignore[misc]

    def _take_flags(self, flags: list[float]) -> None:
        if self.accelerator.num_processes > 1:
            self._stop_signal, self._knows_by_flags = int(flags[-1]), True
        super()._take_flags(flags)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After a signal: save at once, evaluate no more, stop."""
        if not self._knows_by_flags:
            self._stop_signal = self._signal_of_any_process()
        if self._stop_signal:
            self._ask_for_stop()
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationEnded:
            self.control.should_evaluate = True  # also where a first set of several was through
            self._ask_for_stop()
            super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _ask_for_stop(self) -> None:
        control, step = self.control, self.state.global_step
        if control.should_evaluate and self._epoch_is_right():
            self._left_out = True
            if self._saved_step == step and self.args.should_save:  # before the end of the epoch, to which it belongs
                folder = Path(self.args.output_dir) / f"checkpoint-{step}"
                try:
                    mark_evaluation_due(folder)
                    sealing.seal(folder)
                except OSError as error:  # the checkpoint stays what it was
                    logger.warning("%s will not make up for the evaluation of its step: %s", folder, error)
        control.should_training_stop, control.should_evaluate = True, False
        # Trainer asks once more at the end of the epoch
        control.should_save = self._saved_step != step

    def _epoch_is_right(self) -> bool:
        """Whether an evaluation by epochs is asked for at an epoch's end: Trainer asks wherever its loop breaks off."""
        return self.args.eval_strategy != "epoch" or float(self.state.epoch or 0).is_integer()

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """After a signal: what was just saved stays, and nothing else is loaded in the seconds that are left."""
        self._make_up_for_evaluation(trial)
        if not self._stop_signal:
            self._stop_signal = self._signal_of_any_process()  # since the last step, or in its last evaluation
            if self._stop_signal and self.state.global_step not in (0, self._saved_step):
                self._save_checkpoint(self.model, trial)  # type: ignore[attr-defined]
        keep = self.args.save_total_limit, self.args.load_best_model_at_end
        if self._stop_signal:
            self.args.save_total_limit, self.args.load_best_model_at_end = None, False
        try:
            return super()._finalize_training(trial, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.args.save_total_limit, self.args.load_best_model_at_end = keep

    # ---- evaluations of the training loop ----

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's batch of an evaluation; in the training loop a signal ends it here. A collective call there."""
        if self._may_end:
            self._stop_signal = self._signal_of_any_process()
            if self._stop_signal:
                raise EvaluationEnded
        return super().prediction_step(*args, **kwargs)  # type: ignore[misc]

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's evaluation. It draws none of the run's random numbers, and nothing is left of one that a signal ends."""
        before = _Traces.of(self)
        self._may_end = True
        try:
            with nothing_drawn():
                found: dict[str, float] = super()._evaluate(*args, **kwargs)  # type: ignore[misc]
                return found
        except EvaluationEnded:
            before.restore(self)
            raise
        finally:
            self._may_end = False

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's; a resumed run first makes up for an evaluation, and makes no step more than were asked for."""
        self._make_up_for_evaluation(kwargs.get("trial"), kwargs.get("ignore_keys_for_eval"))
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _make_up_for_evaluation(self, trial: Any, ignored: Any = None) -> None:
        """The evaluation that a checkpoint lacks, with all that follows from one."""
        due, self._is_due = self._is_due, False
        if not due:
            return
        metrics = self._evaluate(trial, ignored)
        is_best = self._determine_best_metric(metrics=metrics, trial=trial)  # type: ignore[attr-defined]
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if is_best and self.state.best_global_step == self.state.global_step and folder.is_dir():
            self.state.best_model_checkpoint = str(folder)


def mark_evaluation_due(folder: Path) -> None:
    """Note in a checkpoint that the evaluation of its step has not been made; to be sealed after it."""
    (folder / EVALUATION_DUE).write_text('{"format": 1}\n', encoding="utf-8")


@dataclass
class _Traces:
    """What an evaluation changes while it runs."""

    logs: int
    loaders: list[Any]
    callbacks: list[tuple[Any, dict[str, Any]]]
    monitor: dict[str, Any] | None

    @staticmethod
    def of(trainer: Any) -> _Traces:
        monitor = getattr(trainer, "mask_monitor", None)
        callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, ExportableState)]
        return _Traces(
            len(trainer.state.log_history),
            trainer.accelerator.gradient_state.dataloader_references,
            [(one, copy.deepcopy(one.state().get("attributes", {}))) for one in callbacks],
            None if monitor is None else monitor.memory(),
        )

    def restore(self, trainer: Any) -> None:
        del trainer.state.log_history[self.logs :]
        trainer.accelerator.gradient_state.dataloader_references = self.loaders
        for callback, attributes in self.callbacks:
            for name, value in attributes.items():
                setattr(callback, name, value)
        if self.monitor is not None:
            trainer.mask_monitor.remember(self.monitor)
