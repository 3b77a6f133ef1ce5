"""Starts the two confined processes of a job (program, tests), watches over them, ends them and says what happened.

Run by ``sandbox.running`` with a configuration as its argument, the job on its standard input and the outcome on its
standard output. Both children are forked before the job is read, so that neither holds the other's part. This process is
outside their namespaces: nothing in them can reach it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

from . import kernel
from .child import Child
from .confine import Orders

_READ = 65536
_KEPT_OUTPUT = 500  # bytes of what the program printed that are passed on
_LOOK_AT_SCRATCH = 0.1  # seconds


class Watch:
    """What the processes have sent so far, and why they must end.

    Args:
        program, tests: the two processes.
        report: where the tests' process reports.
        limits: ``wall_seconds``, ``output_bytes``, ``scratch_bytes``.
        scratch: a folder on disk whose size is looked at, or an empty text.
    """

    def __init__(self, program: Child, tests: Child, report: int, limits: dict[str, Any], scratch: str) -> None:
        self.report, self.scratch, self.limits = report, scratch, limits
        self.received = dict.fromkeys((report, program.output, tests.output), b"")
        self.program_output = program.output
        self.stopped: str | None = None  # "timeout", "output" or "files" where a limit ended it

    def run(self) -> None:
        """Until the report has ended, or a limit is reached."""
        end = time.monotonic() + self.limits["wall_seconds"]
        waiting = set(self.received)
        printed = 0
        while self.report in waiting:
            left = end - time.monotonic()
            if left <= 0:
                self.stopped = "timeout"
                return
            ready, _, _ = select.select(waiting, [], [], min(left, _LOOK_AT_SCRATCH) if self.scratch else left)
            for handle in ready:
                part = os.read(handle, _READ)
                if not part:
                    waiting.discard(handle)
                elif handle == self.report:
                    self.received[handle] += part
                else:
                    printed += len(part)
                    self.received[handle] = (self.received[handle] + part)[-_KEPT_OUTPUT:]
            if printed > self.limits["output_bytes"]:
                self.stopped = "output"
                return
            if self.scratch and _size_of(self.scratch) > self.limits["scratch_bytes"]:
                self.stopped = "files"
                return

    def lines(self) -> list[dict[str, Any]]:
        """The report. It is complete if its last line says so."""
        return [json.loads(line) for line in self.received[self.report].splitlines(keepends=True) if line[-1:] == b"\n"]

    def printed(self) -> str:
        """The end of what the program printed."""
        return self.received[self.program_output].decode("utf-8", errors="replace")


def main() -> None:
    """Do the job of the standard input."""
    settings = json.loads(sys.argv[1])
    _die_with_the_caller(settings["caller"])
    orders = Orders.from_json(settings["orders"])
    outcome: dict[str, Any]
    try:
        outcome = _job(orders, settings["limits"])
    except OSError as error:
        outcome = {"unavailable": str(error)}
    finally:
        _end_all()
    json.dump(outcome, sys.stdout)


def _job(orders: Orders, limits: dict[str, Any]) -> dict[str, Any]:
    calls, calling = os.pipe()
    answers, answering = os.pipe()
    report, reporting = os.pipe()
    program = Child(orders, "program", [calls, answering])
    tests = Child(orders, "tests", [answers, calling, reporting])
    for handle in (calls, calling, answers, answering, reporting):
        os.close(handle)
    for child in (program, tests):
        child.finish_setup()
    job = json.load(sys.stdin)
    on_disk = "" if "namespaces" in orders.layers else orders.scratch
    watch = Watch(program, tests, report, limits, on_disk)
    start = time.monotonic()
    tests.give(json.dumps(job["tests"]).encode())
    program.give(job["program"].encode("utf-8", errors="surrogatepass"))
    watch.run()
    seconds = time.monotonic() - start
    if watch.stopped is None:
        _wait_a_moment(program)
    _end_all()
    return {
        "report": watch.lines(),
        "stopped": watch.stopped,
        "program": program.ending(),
        "tests": tests.ending(),
        "printed": watch.printed(),
        "seconds": seconds,
    }


def _wait_a_moment(child: Child) -> None:
    """A process that has ended by itself is given the time to say how; one that still runs is not waited for long."""
    select.select([child.status], [], [], 0.2)


def _end_all() -> None:
    """Kill every child, and whatever becomes a child of this process when its parent has died, until there is none."""
    while True:
        for process in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return _children_by_parent()


def _children_by_parent() -> list[int]:
    """Where the kernel keeps no such list: look at every process."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
        except OSError:
            continue
    return found


def _size_of(folder: str) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total


def _die_with_the_caller(caller: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != caller:
        os._exit(1)
