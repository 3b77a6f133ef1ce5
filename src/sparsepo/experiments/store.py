"""The folder of a study's results: one JSON a run, written whole or not at all, each run done by one process only."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .tasks import Run
from .writing import write_json


class Store:
    """Results in ``FOLDER/runs``, failures in ``FOLDER/failed``, locks in ``FOLDER/locks``.

    A run is claimed with a lock of the operating system on a file of its own, which is released when the process ends,
    however it ends: an interrupted study goes on where it stopped. Locks hold between the processes of one machine.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        for name in ("runs", "failed", "locks", "materials"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def result_path(self, task: Run) -> Path:
        """Where the result of a run lies, or will."""
        return self.folder / "runs" / f"{task.key}.json"

    def result(self, task: Run) -> dict[str, Any] | None:
        """The result of a run, or None: it is not done."""
        path = self.result_path(task)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def failure(self, task: Run) -> str | None:
        """What stopped a run that failed, or None."""
        path = self._failure_path(task)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def save(self, task: Run, result: dict[str, Any]) -> None:
        """Write a result with the task that it belongs to; a failure noted earlier is forgotten."""
        write_json(self.result_path(task), {"task": task.to_json(), **result})
        self._failure_path(task).unlink(missing_ok=True)

    def save_failure(self, task: Run, message: str) -> None:
        """Note that a run failed; it is tried again when the study is started again."""
        self._failure_path(task).write_text(message, encoding="utf-8")

    def _failure_path(self, task: Run) -> Path:
        return self.folder / "failed" / f"{task.key}.txt"

    @contextmanager
    def claimed(self, key: str, wait: bool = False) -> Iterator[bool]:
        """Hold the lock of a key; the value says whether it was free (with ``wait``, always).

        Args:
            key: of a task or of materials.
            wait: until it is free.
        """
        with open(self.folder / "locks" / f"{key}.lock", "w", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
