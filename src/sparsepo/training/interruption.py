"""SIGTERM and Ctrl-C: the step under way is finished, a checkpoint is saved, and the run ends with a stated status."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

ECHO = 2.0  # seconds: a launcher passes on what its terminal or scheduler has sent to all processes already


class TrainingInterrupted(KeyboardInterrupt):
    """Training ended by a signal, after a checkpoint where there was time for one.

    Args:
        number: the signal's number.
        message: what was saved and how to go on.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class Signals:
    """A context in which the first SIGTERM or Ctrl-C is noted and the second ends the run at once.

    What comes within ``ECHO`` seconds of the first is taken for the same one, which reached the process on two ways.
    Only the main thread can handle signals; in another one they keep the effect that they had.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._earlier.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is not None:
            if time.monotonic() - self._at < ECHO:
                return
            raise TrainingInterrupted(number, f"{name} for the second time: ended at once, without a checkpoint.")
        self.received, self._at = number, time.monotonic()
        logger.warning("%s: a checkpoint follows after this step; a second signal ends the run at once.", name)
