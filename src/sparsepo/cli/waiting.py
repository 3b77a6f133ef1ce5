"""A bar for work whose amount is known; in files and pipes one line when it is done."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any


class Waiting:
    """Shows how far something is; called with (done, in all).

    Args:
        console: rich's.
        text: what is done.
        total: amount of work.
    """

    def __init__(self, console: Any, text: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.text = console, text
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task(text, total=total)

    def __enter__(self) -> Waiting:
        self._start = time.monotonic()
        self._bar.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is None:
            from .tables import say

            say(self.console, f"{self.text}: done, {time.monotonic() - self._start:.0f} s")
