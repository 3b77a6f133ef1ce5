"""Processes that load data outlive a signal to the whole process group, which would end them before the checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

_POLL = 1.0  # seconds between two looks at whether the parent still lives


class HearsParentOnly:
    """A ``worker_init_fn`` after which SIGTERM ends the process only where its own trainer sends it, and Ctrl-C never.

    A trainer ends workers that hang by SIGTERM, so that it cannot just be ignored. When the trainer is gone, however it
    ended, the process goes too. Where the system cannot tell senders (macOS), Ctrl-C alone is kept from it.

    Args:
        inner: the function that the loader had.
        trainer: number of the process that makes the loader.
    """

    def __init__(self, inner: Callable[[int], Any] | None, trainer: int) -> None:
        self.inner, self.trainer = inner, trainer

    def __call__(self, worker: int) -> None:
        """In the process that loads data, before its first row."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigtimedwait"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in threads that libraries may have started
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # or it would not reach the one that waits
            threading.Thread(target=_wait, args=(self.trainer, os.getppid()), daemon=True).start()
        if self.inner is not None:
            self.inner(worker)


def _wait(trainer: int, parent: int) -> None:
    while os.getppid() == parent:
        found = signal.sigtimedwait({signal.SIGTERM}, _POLL)
        if found is not None and found.si_pid == trainer:
            os._exit(0)
    os._exit(1)


def shield_workers(loader: Any) -> Any:
    """Give a data loader's workers :class:`HearsParentOnly`; returns the loader. accelerate's keep the real one inside."""
    real = getattr(loader, "base_dataloader", loader)
    if getattr(real, "num_workers", 0) > 0 and not isinstance(real.worker_init_fn, HearsParentOnly):
        real.worker_init_fn = HearsParentOnly(real.worker_init_fn, os.getpid())
    return loader
