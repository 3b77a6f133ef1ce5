"""Working through a plan: in one process or several, on one machine or several that share a folder, each stage once."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .claims import STALE_AFTER, ClaimLostError, Held
from .folder import ExperimentFolder, ago
from .jobs import MODEL, Commands, Job
from .stages import Plan, Stage

POLL = 2.0  # seconds between two looks for work while others are at what comes first
PARENT_POLL = 2.0
WITHOUT_WEIGHTS = "without_weights"  # in the folder of a run whose weights were deleted


@dataclass(frozen=True)
class Work:
    """What a process is given.

    Args:
        plan: the stages.
        folder: of the experiment.
        commands: the commands that train.
        stale_after: seconds without a sign of life after which a stage is taken over.
        may_execute: whether programs that a model wrote may be run.
        keep_models: whether runs keep their weights once they are evaluated.
        started: failures noted before are tried again; by the clock of the folder.
        poll: seconds between two looks.
    """

    plan: Plan
    folder: str
    commands: Commands
    stale_after: float = STALE_AFTER
    may_execute: bool = False
    keep_models: bool = True
    started: float = 0.0
    poll: float = POLL


def work_through(work: Work, jobs: int = 1) -> None:
    """Do what is not done yet; stages that others are at are waited for.

    Raises:
        RuntimeError: a process died; what it had finished is kept.
    """
    if jobs == 1:
        _Worker(work)()
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_child, args=(work, os.getpid())) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:  # ours alone; their claims are free as soon as they have ended
            worker.terminate()
        for worker in workers:
            worker.join()
        raise
    died = [worker.exitcode for worker in workers if worker.exitcode]
    if died:
        raise RuntimeError(f"{len(died)} of {jobs} processes died (exit status {died}); start again to go on.")


def _child(work: Work, parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL)
        os._exit(1)  # whoever started us is gone, so nobody can stop us; what we are at is taken up again

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        _Worker(work)()


class _Worker:
    """One process's way through the plan."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.folder = ExperimentFolder(work.folder, work.stale_after)
        self.claims = self.folder.claims

    def __call__(self) -> None:
        """Until nothing is left that could be done."""
        while True:
            did_something, somebody_works = self._round()
            if not did_something:
                if not somebody_works:
                    return
                time.sleep(self.work.poll)

    def _round(self) -> tuple[bool, bool]:
        """Try the stages in order until one is done; whether one was, and whether others are at some."""
        busy = False
        plan = self.work.plan
        for name, stage in plan.stages.items():
            key = plan.keys[name]
            if self._is_settled(name) or self._has_failed(key) or not self._is_ready(stage):
                continue
            held = self.claims.take(key)
            if held is None:
                busy = True
                continue
            lost = self._do(stage, key, held)
            if not lost:
                return True, busy
            busy = True
        return False, busy

    def _is_ready(self, stage: Stage) -> bool:
        return all(self._is_settled(name) for name in stage.needs.values())

    def _is_settled(self, name: str) -> bool:
        """Whether a stage is done, and its weights are still there if a stage that is not done needs them."""
        plan = self.work.plan
        key = plan.keys[name]
        if not self.folder.is_done(key):
            return False
        is_bare = (self.folder.stage(key) / WITHOUT_WEIGHTS).exists()
        return not is_bare or all(self.folder.is_done(plan.keys[own]) for own in plan.depending([name]))

    def _has_failed(self, key: str) -> bool:
        failure = self.folder.failure(key)
        return failure is not None and failure.at >= self.work.started

    def _do(self, stage: Stage, key: str, held: Held) -> bool:
        """Do a stage that is claimed. Returns whether somebody took it over meanwhile."""
        held.when_lost = interrupt_stage
        with held:
            if self._is_settled(stage.name) or self._has_failed(key):  # by who held it when we looked first
                return False
            start, cpu = time.perf_counter(), time.process_time()
            try:
                with interruptible():
                    result = self._result(stage, key)
                held.check()
                took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
                result |= {name: round(value, 1) for name, value in took.items()}
                (self.folder.stage(key) / WITHOUT_WEIGHTS).unlink(missing_ok=True)
                self.folder.save(key, {"stage": stage.name, **result})
                if not self.work.keep_models and "train" in stage.needs:
                    drop_weights(self.folder.stage(self.work.plan.keys[stage.needs["train"]]))
            except (StageInterrupt, ClaimLostError):
                self._tell(f"{stage.name}: another process has taken it over, since nothing was heard of this one")
                return True
            except (Exception, SystemExit) as error:
                reason = _reason(error)
                self.folder.save_failure(key, reason, traceback.format_exc())
                self._tell(f"{stage.name}: FAILED, {reason} (log: {self.folder.log(key)})")
                return False
            self._tell(f"{stage.name}: {result.get('summary', 'done')}, {ago(time.perf_counter() - start)}")
        return False

    def _result(self, stage: Stage, key: str) -> dict[str, Any]:
        from importlib.metadata import version

        from .actions import do

        plan, folder = self.work.plan, self.folder
        keys = {role: plan.keys[name] for role, name in stage.needs.items()}
        output = folder.stage(key)
        output.mkdir(parents=True, exist_ok=True)
        job = Job(
            stage,
            output,
            {role: folder.stage(own) for role, own in keys.items()},
            {role: folder.result(own) or {} for role, own in keys.items()},
            self.work.commands,
            self.work.may_execute,
        )
        try:
            with printed_to(folder.log(key)):
                result = do(job)
        finally:
            gc.collect()  # trainers hold their models in circles
        return result | {"versions": {name: version(name) for name in ("sparsepo", "torch", "transformers", "trl")}}

    def _tell(self, text: str) -> None:
        plan, folder = self.work.plan, self.folder
        done = sum(folder.is_done(key) for key in plan.keys.values())
        print(f"[{done}/{len(plan.keys)}] {text}", flush=True)


class StageInterrupt(BaseException):
    """A stage is to stop; no handler of errors in a library takes it for one."""


def interrupt_stage() -> None:
    """Stop what the main thread is at within :func:`interruptible`, asleep or not; from another thread."""
    os.kill(os.getpid(), signal.SIGUSR1)  # SIGINT may be ignored, as shells have it for what runs in the background


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Where :func:`interrupt_stage` raises :class:`StageInterrupt`; before and after it does nothing."""
    is_armed = True

    def interrupt(*_: Any) -> None:
        if is_armed:
            raise StageInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        is_armed = False
        signal.signal(signal.SIGUSR1, signal.SIG_IGN if before == signal.SIG_DFL else before)


def drop_weights(folder: Path) -> None:
    """Delete a run's weights; its mask, settings and numbers stay. It is trained again if its weights are needed."""
    (folder / WITHOUT_WEIGHTS).touch()
    for pattern in ("*.safetensors", "*.bin", "*.safetensors.index.json"):
        for path in (folder / MODEL).glob(pattern):
            path.unlink()


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Send what is printed, also by libraries and by processes that are started, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    with path.open("a", encoding="utf-8", buffering=1) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for number, old in zip((1, 2), saved, strict=True):
                os.dup2(old, number)
                os.close(old)
