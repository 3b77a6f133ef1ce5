"""One confined process and the pipes to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

from . import candidate, examiner, kernel, namespaces
from .confine import NAMESPACES, Orders, confine

_LEFT = b"\0"  # a process of the superuser has left its namespaces and waits for its user


class Child:
    """A process that is confined, waits for its part of the job, and does it.

    Between it and the launcher stands a process that passes on how it ended: the first process of a process table of its
    own must be forked by one that has left the surrounding one.

    Args:
        orders: what it is confined to.
        role: ``program`` or ``tests``.
        pipes: its ends of the pipes to the other process (read, write), then that of the report.
    """

    def __init__(self, orders: Orders, role: str, pipes: list[int]) -> None:
        self.role = role
        self._is_mapped = NAMESPACES in orders.layers and os.geteuid() == 0
        given, self._input = os.pipe()
        self.output, printed = os.pipe()
        self._setup, setup = os.pipe()
        self.status, status = os.pipe()
        mapped, self._map = os.pipe()
        launcher = os.getpid()
        self.process = os.fork()
        if self.process == 0:
            self._launcher = launcher
            self._stand_between(orders, [given, *pipes], printed, setup, status, mapped)
        for handle in (given, printed, setup, status, mapped):
            os.close(handle)

    def finish_setup(self) -> None:
        """Wait until it is confined.

        Raises:
            OSError: a layer could not be had; the message says why.
        """
        if self._is_mapped and os.read(self._setup, 1) == _LEFT:
            namespaces.map_users(self.process)
            os.write(self._map, b"m")
        os.close(self._map)
        told = _all_of(self._setup)
        if told != b"ok":
            raise OSError(told.decode(errors="replace") or "the process ended while it was confined")

    def give(self, content: bytes) -> None:
        """Its part of the job."""
        with os.fdopen(self._input, "wb") as file:
            try:
                file.write(content)
                file.flush()
            except BrokenPipeError:
                pass  # it has been killed; how it ended says why

    def ending(self) -> dict[str, Any]:
        """``state`` (exit status, or minus a signal) and ``cpu`` (seconds); empty where it was ended from here."""
        told = _all_of(self.status)
        return json.loads(told) if told else {}

    def _stand_between(
        self, orders: Orders, keep: list[int], printed: int, setup: int, status: int, mapped: int
    ) -> NoReturn:
        try:
            os.setsid()
            if NAMESPACES in orders.layers:
                namespaces.leave()
                if self._is_mapped:
                    os.write(setup, _LEFT)
                    os.read(mapped, 1)
            # after the change of users, which would clear it: this process, and with it the next, dies with the launcher
            kernel.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != self._launcher:
                os._exit(1)
            process = os.fork()
        except OSError as error:
            os.write(setup, f" {error}".encode())
            os._exit(1)
        if process == 0:
            self._confined(orders, keep, printed, setup)
        os.closerange(3, status)
        os.closerange(status + 1, 4096)
        _, state, usage = os.wait4(process, 0)
        ending = {"state": os.waitstatus_to_exitcode(state), "cpu": usage.ru_utime + usage.ru_stime}
        os.write(status, json.dumps(ending).encode())
        os._exit(0)

    def _confined(self, orders: Orders, keep: list[int], printed: int, setup: int) -> NoReturn:
        try:
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            confine(orders, [*keep, setup])
        except BaseException as error:
            for handle in (setup, 3 + len(keep)):  # where it was, and where it is put while other files are closed
                with contextlib.suppress(OSError):
                    os.write(handle, f"{error}".encode())
            os._exit(1)
        told = 3 + len(keep)
        os.write(told, b"ok")
        os.close(told)
        files: list[Any] = [os.fdopen(3 + place, "wb" if place >= 2 else "rb") for place in range(len(keep))]
        try:
            (candidate.main if self.role == "program" else examiner.main)(*files)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(0)  # not what the program left to be done at the end: it may never finish


def _all_of(handle: int) -> bytes:
    parts = []
    while part := os.read(handle, 65536):
        parts.append(part)
    os.close(handle)
    return b"".join(parts)
