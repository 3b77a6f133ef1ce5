"""What keeps a run whole when machines fail: one run a folder, sealed checkpoints, and an end at a signal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from . import sealing
from .interruption import Signals, TrainingInterrupted
from .sealing import CheckpointError
from .stopping import EvaluationEnded, StopsOnSignal, mark_evaluation_due
from .trl_bridge import stages_of_fsdp

logger = logging.getLogger(__name__)


class RunGuard(StopsOnSignal):
    """The parts of a Trainer that save and stop, guarded. Mixed into any Trainer, before all others."""

    # set by the trainer, or Trainer's own
    accelerator: Any
    args: Any
    state: Any
    is_in_train: bool
    is_world_process_zero: Any
    _get_output_dir: Any
    _postponed_push: list[str] | None = None
    _saving: Path | None = None  # the checkpoint that is being written

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Training into a folder that no other process trains into, from a checkpoint that is whole.

        Raises:
            CheckpointError: the folder is in use, or a checkpoint is not whole or cannot be written.
            TrainingInterrupted: SIGTERM or Ctrl-C; a checkpoint was saved before.
        """
        folder = self.args.output_dir
        checkpoint = _checked(resume_from_checkpoint, folder)
        self._begin_listening(checkpoint)
        result, late = None, 0
        with _held(folder, self.is_world_process_zero()), Signals() as self._signals:
            self._leave_other_course(checkpoint, folder)
            try:
                result = super().train(checkpoint, *args, **kwargs)  # type: ignore[misc]
            except EvaluationEnded:  # one before the first step: there is nothing to save
                self.is_in_train = False
            late = 0 if self._stop_signal else self._signal_of_any_process()
        if self._stop_signal:
            raise self._interruption()
        if late:
            last = sealing.last_whole(folder)
            kept = f"{last.name} is the last whole checkpoint" if last is not None else "no checkpoint was saved"
            raise TrainingInterrupted(
                late, f"{signal.Signals(late).name}: came after the last step, {self.state.global_step}; {kept}."
            )
        return result

    def _leave_other_course(self, checkpoint: Any, folder: str) -> None:
        """Checkpoints after the one that is gone on from are of another course. A collective call."""
        found = sealing.checkpoint_folders(folder)
        start = next((path for path in found if checkpoint and path.resolve() == Path(checkpoint).resolve()), None)
        if self.args.should_save and (start is not None or not checkpoint):
            step = int(start.name.rpartition("-")[2]) if start is not None else 0
            for path in sealing.set_aside(folder, step):
                logger.warning("%s: a checkpoint of an earlier run, after step %d where this one goes on.", path, step)
        self.accelerator.wait_for_everyone()

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, sealed when it is whole; only then older ones may go and pushes begin."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            sealing.remove(folder)  # what an interrupted run has left there
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._postponed_push, self._saving = [], folder
        try:
            self._attempt(folder, lambda: super(RunGuard, self)._save_checkpoint(model, trial))  # type: ignore[misc]
            self._attempt(folder, lambda: self._complete(folder))
        finally:
            self.args.save_total_limit, self._saving = limit, None
            pushes, self._postponed_push = self._postponed_push, None
        self._saved_step = self.state.global_step
        for path in pushes:
            self._push_from_checkpoint(path)
        if self.args.should_save:
            sealing.rotate(folder, limit, self.state.best_model_checkpoint)

    def _complete(self, folder: Path) -> None:
        if self.args.should_save:
            monitor = getattr(self, "mask_monitor", None)
            if monitor is not None:
                monitor.save_state(folder)
            if self._left_out:
                mark_evaluation_due(folder)
            sealing.seal(folder)

    def _attempt(self, folder: Path, save: Callable[[], Any]) -> None:
        """A stage of saving. If it fails on one process, all of them stop with the reason. A collective call.

        Stages lie within each other and before whatever else the processes do together: one that fails goes straight to
        the end of a stage, and meets the others there.
        """
        problem: Exception | None = None
        try:
            save()
        except (torch.OutOfMemoryError, CheckpointError):  # the latter: all know
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = error
        if not self._largest(float(problem is not None)):
            return
        if self.args.should_save:
            sealing.remove(folder)
        raise CheckpointError(_why(folder, problem)) from problem

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; in a checkpoint the first stage of saving. A collective call."""
        self._stage(output_dir, lambda: super(RunGuard, self).save_model(output_dir, _internal_call))  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Trainer's, and a stage of saving. A collective call."""
        with stages_of_fsdp(lambda save: self._stage(output_dir, save)):
            self._stage(output_dir, lambda: super(RunGuard, self)._save_optimizer_and_scheduler(output_dir))  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        """Trainer's, and a stage of saving. A collective call."""
        self._stage(output_dir, lambda: super(RunGuard, self)._save_rng_state(output_dir))  # type: ignore[misc]

    def _stage(self, folder: str | None, save: Callable[[], Any]) -> None:
        if self._saving is not None and folder is not None and Path(folder) == self._saving:
            self._attempt(self._saving, save)
        else:
            save()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _same_types(self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        with _same_types(self.model):
            super()._load_best_model()  # type: ignore[misc]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._postponed_push is not None:
            self._postponed_push.append(checkpoint_folder)
        else:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _save_before_stop(self) -> str:
        """A checkpoint of the weights before a step that is not finite; returns where. A collective call."""
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        if step == 0:
            return "No step was made before it"
        # one process looks: where disks are not shared the others see none of its files
        is_there = self.is_world_process_zero() and sealing.problem_of(folder) is None
        if not self._largest(float(is_there)):
            self._save_checkpoint(self.model, None)
        return f"{folder} holds the weights before it"


def _checked(wish: Any, folder: str) -> Any:
    """A checkpoint to resume from: the last whole one for True, otherwise the one named, if it is whole."""
    if not wish:
        return None
    if wish is True:
        found = sealing.last_whole(folder, logger.warning)
        if found is None:
            raise CheckpointError(f"resume_from_checkpoint=True: {folder} holds no whole checkpoint.")
        return str(found)
    problem = sealing.problem_of(wish)
    if problem is not None:
        raise CheckpointError(f"resume_from_checkpoint={wish}: {problem}. Resume from an earlier one, or start anew.")
    return wish


def _held(folder: str, is_main: bool) -> Any:
    from contextlib import nullcontext

    return sealing.holding(folder) if is_main else nullcontext()


def _why(folder: Path, problem: Exception | None) -> str:
    import shutil

    reason = "another process says why" if problem is None else str(problem).strip() or type(problem).__name__
    try:
        space = f"{shutil.disk_usage(folder.parent).free / 2**30:.1f} GiB are free there"
    except OSError as error:
        space = f"its disk cannot be asked for room: {error}"
    last = sealing.last_whole(folder.parent)
    kept = f"{last.name} is the last whole checkpoint" if last is not None else "there is no earlier checkpoint"
    return (
        f"{folder} could not be written ({reason}); {space}. What there was of it is taken away; {kept}. Make room, then go "
        "on with resume_from_checkpoint=auto."
    )


@contextmanager
def _same_types(model: nn.Module) -> Iterator[None]:
    """Weights that are loaded keep the type that they have: PEFT makes float32 of adapters that QLoRA has in bfloat16."""
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != types.get(name, parameter.dtype):
            parameter.data = parameter.data.to(types[name])
