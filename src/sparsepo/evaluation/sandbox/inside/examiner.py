"""The process of the tests: evaluates them with the program's functions answering from another process.

Each test runs here, and its comparisons see plain data only. The report goes over a pipe that no other process holds, one
line a test, and a last line says that all were evaluated.
"""

from __future__ import annotations

import builtins
import json
import sys
from typing import Any, BinaryIO

from . import values

LONGEST_MESSAGE = 32 * 2**20


class Gone(BaseException):
    """The program's process answers no more. No ``except Exception`` of a test can catch it."""


class ProgramError(RuntimeError):
    """An exception of the program of no built-in type."""


class Remote:
    """The program in the other process.

    Args:
        calls, answers: the pipes to and from it.
    """

    def __init__(self, calls: BinaryIO, answers: BinaryIO) -> None:
        self._calls, self._answers = calls, answers
        self.count = 0
        self.gone = False
        self.missing = False
        self.last_error: BaseException | None = None
        self.last_name = ""

    def load(self) -> dict[str, Any]:
        """What became of the program when it was run as a whole."""
        return self._receive()

    def function(self, name: str) -> Any:
        """A function that calls the program's of that name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            self._send({"name": name, "args": args, "kwargs": kwargs})
            return self._value(self._receive())

        call.__name__ = call.__qualname__ = name
        return call

    def _send(self, request: dict[str, Any]) -> None:
        line = values.dumps(request)
        try:
            self._calls.write(line)
            self._calls.flush()
        except OSError:
            self._lose()

    def _receive(self) -> dict[str, Any]:
        if self.gone:
            raise Gone
        line = self._answers.readline(LONGEST_MESSAGE)
        if not line.endswith(b"\n"):
            self._lose()
        try:
            content = values.loads(line)
        except ValueError:
            self._lose()
        if not isinstance(content, dict):
            self._lose()
        return dict(content)

    def _lose(self) -> None:
        self.gone = True
        raise Gone

    def _value(self, answer: dict[str, Any]) -> Any:
        if "value" in answer:
            return answer["value"]
        if "missing" in answer:
            self.missing = True
            self.last_error = NameError("the program defines no such function")
        else:
            name, message = [str(part) for part in answer.get("error", ("", ""))][:2]
            self.last_name = name
            kind = getattr(builtins, name, None)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            try:
                self.last_error = kind(message) if known else ProgramError(message)  # type: ignore[misc]
            except TypeError:  # the few kinds that are not made of a message
                self.last_error = ProgramError(message)
        raise self.last_error


def main(tests: BinaryIO, answers: BinaryIO, calls: BinaryIO, report: BinaryIO) -> None:
    """Evaluate the tests that ``tests`` holds as JSON: ``preamble``, ``functions``, ``tests``."""
    job = json.loads(tests.read())
    remote = Remote(calls, answers)
    say = _Reporter(report)
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(compile(job["preamble"], "<preamble>", "exec", dont_inherit=True, optimize=0), namespace)
    for name in job["modules"]:
        namespace.setdefault(name, __import__(name))
    say(ready=True)
    try:
        loaded = remote.load()
    except Gone:
        say(failed="gone")
        return
    if "loaded" not in loaded:
        say(failed=str(loaded.get("failed", "load")), error=[str(part) for part in loaded.get("error", ("", ""))][:2])
        return
    namespace.update({name: remote.function(name) for name in job["functions"]})
    for place, test in enumerate(job["tests"]):
        try:
            exec(compile(test, f"<test {place}>", "exec", dont_inherit=True, optimize=0), namespace)
        except Gone:
            pass
        except BaseException as error:
            ours = error is remote.last_error
            kind = "missing" if ours and remote.missing else "error" if ours else _kind_of(error)
            name = remote.last_name if kind == "error" else type(error).__name__
            say(test=place, passed=False, kind=kind, error=[name, str(error)[:500]])
            continue
        if remote.gone:  # also where a test has swallowed it
            say(failed="gone")
            return
        say(test=place, passed=True)
    say(finished=True, calls=remote.count)


def _kind_of(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        return "assertion"
    return "unsupported" if isinstance(error, values.UnsupportedValueError) else "comparison"


class _Reporter:
    def __init__(self, report: BinaryIO) -> None:
        self._report = report

    def __call__(self, **content: Any) -> None:
        self._report.write(json.dumps(content).encode() + b"\n")
        self._report.flush()
        sys.stdout.flush()
