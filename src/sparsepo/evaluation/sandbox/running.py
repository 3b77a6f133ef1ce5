"""Running a program against tests in the sandbox."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import LAYERS, Isolation, Limits, SandboxError, check_consent

_HERE = Path(__file__).resolve().parent
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from inside.launcher import main; sys.path.pop(0); main()"
_EXTRA_SECONDS = 20.0  # for the launcher beyond the program's own wall time


@dataclass(frozen=True)
class TestJob:
    """Tests of a program. All of it but the program is taken as trusted, and runs apart from the program.

    Args:
        functions: names that the tests call and the program is to define.
        tests: Python statements, each a test that passes unless it raises.
        preamble: Python that runs before the tests: imports, helpers.
        modules: modules of the standard library that the tests use and the preamble does not import.
    """

    __test__ = False  # no test class of pytest

    functions: tuple[str, ...]
    tests: tuple[str, ...]
    preamble: str = ""
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.functions or not self.tests:
            raise ValueError(f"A job needs a function to test and a test; got {self.functions} and {self.tests}.")


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Args:
        passed: every test was evaluated and passed, and the program was really called.
        kind: ``passed`` or what went wrong: ``syntax``, ``import``, ``missing`` (function not defined), ``assertion``,
            ``exception``, ``comparison`` (the result has a type with which the test cannot work), ``unsupported`` (an
            argument cannot be sent), ``timeout``, ``memory``, ``output``, ``files``, ``exit``, ``crash``.
        detail: one line.
        tests: which of the tests passed.
        seconds: wall time.
        printed: the end of what the program printed.
    """

    passed: bool
    kind: str
    detail: str
    tests: tuple[bool, ...]
    seconds: float
    printed: str = ""


def run_tests(
    program: str,
    job: TestJob,
    *,
    allow_code_execution: bool = False,
    limits: Limits | None = None,
    isolation: Isolation | None = None,
) -> Outcome:
    """Run a program that nobody has looked at, and tests on it.

    Program and tests run in two processes, each confined. The program sees the arguments of calls and nothing else of the
    tests; the tests see results as plain data. So the only way for a program to pass is to return what the tests ask for.

    Args:
        program: Python source.
        job: its tests.
        allow_code_execution: must be True.
        limits: see :class:`Limits`.
        isolation: the layers to use; None: all that this system has, which must contain everything.

    Raises:
        ExecutionNotAllowedError: ``allow_code_execution`` is not True.
        SandboxError: the sandbox could not be set up, or does not contain everything and ``isolation`` was not given.
    """
    check_consent(allow_code_execution)
    limits = limits or Limits()
    isolation = isolation or containing_isolation()
    content = {
        "program": program,
        "tests": {
            "preamble": job.preamble,
            "modules": list(job.modules),
            "functions": list(job.functions),
            "tests": list(job.tests),
        },
    }
    told = _launch(content, limits, isolation.layers)
    if "unavailable" in told:
        raise SandboxError(f"The sandbox could not be set up: {told['unavailable']}")
    return _outcome(told, job, limits)


def containing_isolation() -> Isolation:
    """The layers of this system, if they contain everything.

    Raises:
        SandboxError: they do not; the message says what a program could do.
    """
    isolation = detect_isolation()
    if isolation.uncontained:
        raise SandboxError(
            f"Programs cannot be contained on this system ({isolation.describe()}): they could "
            f"{'; '.join(isolation.uncontained)}. Run where user namespaces, or Landlock and seccomp, are to be had (a "
            "container may hide them), or accept that with --allow-weak-sandbox (isolation=detect_isolation())."
        )
    return isolation


@functools.cache
def detect_isolation() -> Isolation:
    """Which layers this system has, found by putting on each; asked once a process."""
    if sys.platform != "linux":
        raise SandboxError(f"The sandbox needs Linux; this is {sys.platform}. Use a container or virtual machine.")
    job = {"program": "", "tests": {"preamble": "", "modules": [], "functions": [], "tests": []}}
    layers, reasons = [], []
    for layer in LAYERS:
        told = _launch(job, Limits(), (layer,))
        if "unavailable" in told:
            reasons.append((layer, str(told["unavailable"])))
        else:
            layers.append(layer)
    return Isolation(tuple(layers), tuple(reasons))


def _launch(content: dict[str, Any], limits: Limits, layers: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sparsepo-", ignore_cleanup_errors=True) as scratch:
        paths = [path for path in _standard_library_paths() if os.path.exists(path)]
        orders = {"layers": list(layers), "limits": limits.to_json(), "scratch": scratch, "paths": paths}
        settings = {"caller": os.getpid(), "orders": orders, "limits": limits.to_json()}
        process = subprocess.Popen(
            # no site packages, no user's packages, nothing from the current folder
            [_interpreter(), "-S", "-s", "-P", "-c", _START, json.dumps(settings), str(_HERE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            # the same order of sets of texts in every run; nothing of this process's environment
            env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(json.dumps(content).encode(), timeout=limits.wall_seconds + _EXTRA_SECONDS)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"The sandbox's launcher did not answer within {_EXTRA_SECONDS:g} s.") from None
        finally:
            if process.poll() is None:  # its children die with it
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    try:
        return dict(json.loads(out))
    except ValueError:
        message = err.decode(errors="replace").strip().splitlines()
        raise SandboxError(f"The sandbox's launcher failed: {message[-1] if message else 'no message'}") from None


def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _standard_library_paths() -> list[str]:
    library = os.path.dirname(os.path.realpath(os.__file__))
    return [library, os.path.join(library, "lib-dynload")]


def _outcome(told: dict[str, Any], job: TestJob, limits: Limits) -> Outcome:
    report = told["report"]
    if not report and not told["stopped"]:
        raise SandboxError(f"The tests' own process failed before the program was run: {job.preamble[:80]!r}")
    results = {line["test"]: line for line in report if "test" in line}
    tests = tuple(bool(results.get(place, {}).get("passed")) for place in range(len(job.tests)))
    last = report[-1] if report else {}
    finished = last.get("finished") is True
    if finished and all(tests) and last["calls"] > 0:
        return Outcome(True, "passed", "", tests, told["seconds"], told["printed"])
    kind, detail = _failure(told, report, results, finished, limits)
    return Outcome(False, kind, detail, tests, told["seconds"], told["printed"])


def _failure(
    told: dict[str, Any], report: list[dict[str, Any]], results: dict[int, Any], finished: bool, limits: Limits
) -> tuple[str, str]:
    """Kind and detail of a failure."""
    if told["stopped"]:
        what = {
            "timeout": f"more than {limits.wall_seconds:g} s",
            "output": f"printed over {limits.output_bytes} bytes",
        }
        return told["stopped"], what.get(told["stopped"], f"files of more than {limits.scratch_bytes} bytes")
    last = report[-1]
    if last.get("failed") in ("syntax", "load"):
        name, message = last.get("error", ("", ""))
        return "syntax" if last["failed"] == "syntax" else _kind_of(name), f"{name}: {message}"
    if not finished:
        return _ending(told, limits)
    failed = next((line for line in results.values() if not line["passed"]), None)
    if failed is None:
        return "missing", "no test called the program"
    name, message = failed["error"]
    kind = _kind_of(name) if failed["kind"] == "error" else failed["kind"]
    return kind, f"test {failed['test'] + 1}: {name}{f': {message}' if message else ''}"


def _kind_of(name: str) -> str:
    return {
        "ModuleNotFoundError": "import",
        "ImportError": "import",
        "MemoryError": "memory",
        "SystemExit": "exit",
    }.get(name, "exception")


def _ending(told: dict[str, Any], limits: Limits) -> tuple[str, str]:
    """Of a program whose process, or whose tests' process, is gone."""
    for role in ("program", "tests"):
        ending = told[role]
        # the kernel's limit counts in ticks: it may act a little before the time that is accounted reaches it
        acted = ending.get("state", 0) in (-signal.SIGXCPU, -signal.SIGKILL)
        if ending.get("cpu", 0.0) >= (0.75 if acted else 0.95) * limits.cpu_seconds:
            return "timeout", f"more than {limits.cpu_seconds} s of computing"
        if ending.get("state", 0) < 0:
            return "crash", f"the {role}'s process ended by signal {-ending['state']}"
    if told["program"].get("state") == 0 and "state" in told["program"]:
        return "exit", "the program ended its process with status 0"
    state = told["program"].get("state")
    return "exit", f"the program ended its process with status {state}" if state else "the program closed its pipes"
