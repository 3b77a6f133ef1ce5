"""The folder of an experiment: what is done, what failed and why, who is at what. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsepo.experiments.writing import write_json

from .claims import STALE_AFTER, Claims

DONE = "done.json"
PLAN = "plan.json"


@dataclass(frozen=True)
class Failure:
    """What stopped a stage.

    Args:
        reason: its last line.
        details: the traceback.
        at: when, by the clock of the file system's server.
        host, pid: where.
    """

    reason: str
    details: str
    at: float
    host: str
    pid: int


class ExperimentFolder:
    """``FOLDER/stages/KEY`` holds a stage's output, with ``done.json`` written last; ``claims``, ``failed`` and ``logs``
    lie beside.

    Args:
        path: the folder; its parts are made when something is written.
        stale_after: seconds without a sign of life after which another process takes a stage over.
    """

    def __init__(self, path: str | Path, stale_after: float = STALE_AFTER) -> None:
        self.path = Path(path)
        self.stale_after = stale_after

    @property
    def claims(self) -> Claims:
        """Who is at what."""
        return Claims(self.path / "claims", self.stale_after)

    def stage(self, key: str) -> Path:
        """Where a stage's output lies, or will."""
        return self.path / "stages" / key

    def log(self, key: str) -> Path:
        """Where it is kept what a stage printed."""
        return self.path / "logs" / f"{key}.log"

    def is_done(self, key: str) -> bool:
        """Whether the stage is done."""
        return (self.stage(key) / DONE).is_file()

    def result(self, key: str) -> dict[str, Any] | None:
        """What a stage found, or None: it is not done."""
        return _read(self.stage(key) / DONE)

    def save(self, key: str, result: dict[str, Any]) -> None:
        """Write what a stage found, which says that it is done; a failure noted earlier is forgotten."""
        write_json(self.stage(key) / DONE, result)
        self._failure_path(key).unlink(missing_ok=True)

    def failure(self, key: str) -> Failure | None:
        """What stopped a stage, or None."""
        path = self._failure_path(key)
        content = _read(path)
        if content is None:
            return None
        try:
            return Failure(**content, at=path.stat().st_mtime)
        except FileNotFoundError:  # done meanwhile
            return None

    def save_failure(self, key: str, reason: str, details: str) -> None:
        """Note that a stage failed; it is tried again when the experiment is started again."""
        content = {"reason": reason, "details": details, "host": socket.gethostname(), "pid": os.getpid()}
        write_json(self._failure_path(key), content)

    def plan(self) -> dict[str, Any] | None:
        """The plan that was worked on last, as :meth:`sparsepo.experiments.pipeline.stages.Plan.to_json` gives it."""
        return _read(self.path / PLAN)

    def save_plan(self, plan: dict[str, Any]) -> None:
        """Keep the plan."""
        write_json(self.path / PLAN, plan)

    def now(self) -> float:
        """The time by the clock that stamps this folder's files."""
        self.path.mkdir(parents=True, exist_ok=True)
        probe = self.path / f".clock-{socket.gethostname()}-{os.getpid()}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _failure_path(self, key: str) -> Path:
        return self.path / "failed" / f"{key}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def ago(seconds: float) -> str:
    """A duration for people."""
    seconds = max(seconds, 0.0)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def clock(at: float) -> str:
    """A time for people, in the reader's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
