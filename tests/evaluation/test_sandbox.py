"""The sandbox: what crosses between its processes, what it reports, and that it refuses what it must."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation.sandbox import (
    ExecutionNotAllowedError,
    Isolation,
    Limits,
    SandboxError,
    TestJob,
    detect_isolation,
    run_tests,
    running,
)
from sparsepo.evaluation.sandbox.inside import seccomp
from sparsepo.evaluation.sandbox.inside.values import UnsupportedValueError, dumps, loads

JOB = TestJob(("f",), ("assert f(1) == 2", "assert f(2) == 3"))
GOOD = "def f(x):\n    return x + 1\n"

_atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
_keys = st.none() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
_values = st.recursive(
    _atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(_keys, inner)
        | st.sets(_keys)
        | st.frozensets(_keys)
    ),
    max_leaves=12,
)


@given(_values)
def test_plain_data_arrive_as_they_are(value: Any) -> None:
    arrived = loads(dumps(value))
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        1 << 20000, -(10**400), 1.5, float("inf"), "\ud800", range(2, 9, 3), deque([1]), Counter("aab"), OrderedDict(a=1),
        Decimal("1.10"), Fraction(1, 3), datetime.date(2020, 1, 2), datetime.timedelta(1, 2, 3), int, bytearray(b"x"),
        {"a": 1}.keys(), {"a": [1]}.items(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_rarer_data_arrive_too(value: Any) -> None:
    arrived = loads(dumps(value))
    assert arrived == value
    assert type(arrived) is type(value)


def test_what_is_no_plain_data() -> None:
    class Same(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert type(loads(dumps(Same(3)))) is int
    assert loads(dumps(object())) != object()
    assert list(loads(dumps(iter([1, 2])))) == [1, 2]
    assert loads(dumps(iter([1, 2]))) != [1, 2]
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(UnsupportedValueError):
        dumps(nested)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,0123456789tuplesid', max_size=40).map(str.encode))
def test_no_message_breaks_the_decoder(line: bytes) -> None:
    with contextlib.suppress(ValueError):
        loads(line)


def run(program: str, job: TestJob = JOB, **limits: Any) -> Any:
    return run_tests(program, job, allow_code_execution=True, limits=Limits(**{"cpu_seconds": 2, **limits}))


def test_a_good_program_passes_and_a_half_good_one_does_not() -> None:
    assert (run(GOOD).passed, run(GOOD).tests) == (True, (True, True))
    half = run("def f(x):\n    return 2\n")
    assert (half.passed, half.tests, half.kind) == (False, (True, False), "assertion")


@pytest.mark.parametrize(
    ("program", "kind", "detail"),
    [
        ("def f(x) return 2", "syntax", "SyntaxError"),
        ("import numpy_of_nobody", "import", "numpy_of_nobody"),
        ("def g(x): return 2", "missing", "no such function"),
        ("def f(x): return 'a' + x", "exception", "TypeError"),
        ("class E(Exception): pass\ndef f(x): raise E('own')", "exception", "E: own"),
        ("def f(x): return [0] * 10**11", "memory", "MemoryError"),
        ("raise SystemExit(3)", "exit", "SystemExit"),
        ("import os\ndef f(x): os._exit(7)", "exit", "status 7"),
    ],
)
def test_what_goes_wrong_is_named(program: str, kind: str, detail: str) -> None:
    outcome = run(program)
    assert (outcome.passed, outcome.kind) == (False, kind)
    assert detail in outcome.detail


def test_tests_that_call_nothing_pass_no_program() -> None:
    outcome = run(GOOD, TestJob(("f",), ("assert True",)))
    assert (outcome.passed, outcome.kind) == (False, "missing")


def test_a_test_that_swallows_everything_passes_no_dead_program() -> None:
    swallowing = TestJob(("f",), ("try:\n    f(1)\nexcept BaseException:\n    pass",))
    assert not run("import os\ndef f(x): os._exit(0)", swallowing).passed


def test_names_of_python_can_be_the_program_s() -> None:
    job = TestJob(("sum",), ("assert sum(2, 3) == 6",))
    assert run("def sum(a, b):\n    return a * b\n", job).passed


def test_the_program_does_not_see_the_tests() -> None:
    marked = f"MARK{secrets.token_hex(16)}"
    job = TestJob(("f",), (f"assert f('look') == {marked!r}",), preamble=f"x = {marked!r}")
    program = """
import gc, os, re, sys
def f(x):
    seen = repr([o for o in gc.get_objects() if isinstance(o, (str, dict, list, tuple))]) + repr(sys.argv) + repr(os.environ)
    for path in ("/proc/self/cmdline", "/proc/self/environ", "/dev/fd/0", "/dev/stdin"):
        try:
            with open(path) as file:
                seen += file.read()
        except OSError:
            pass
    frame = sys._getframe()
    while frame:
        seen += repr(frame.f_locals) + repr(frame.f_globals)
        frame = frame.f_back
    found = re.search("MARK[0-9a-f]{32}", seen)
    return found and found.group()
"""
    outcome = run(program, job, cpu_seconds=10)
    assert (outcome.passed, outcome.kind) == (False, "assertion")


def test_nothing_runs_without_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_launch", lambda *args: pytest.fail("something was started"))
    for consent in (False, None, 1, "yes"):
        with pytest.raises(ExecutionNotAllowedError, match="--allow-code-execution"):
            run_tests(GOOD, JOB, allow_code_execution=consent)  # type: ignore[arg-type]


def test_a_system_that_contains_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Isolation((), (("namespaces", "switched off"),))
    assert len(weak.uncontained) == 3
    assert not Isolation(("namespaces",)).uncontained
    assert not Isolation(("landlock", "seccomp")).uncontained
    assert Isolation(("landlock",)).uncontained
    monkeypatch.setattr(running, "detect_isolation", lambda: weak)
    with pytest.raises(SandboxError, match=r"(?s)switched off.*--allow-weak-sandbox"):
        run_tests(GOOD, JOB, allow_code_execution=True)


def test_a_layer_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_launch", lambda *args: {"unavailable": "mount: no"})
    with pytest.raises(SandboxError, match="mount: no"):
        run_tests(GOOD, JOB, allow_code_execution=True, isolation=Isolation(("namespaces",)))


@pytest.mark.parametrize("changes", [{"wall_seconds": 0}, {"memory_bytes": 1000}, {"open_files": 3}])
def test_limits_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Limits(**changes)


def test_without_layers_hostile_programs_reach_what_they_look_for() -> None:
    """The control: what reads files or makes anonymous ones passes where nothing but limits contains it."""
    job = TestJob(("add",), ("assert add(1, 2) == 3",))
    for name in ("reads_files", "memory_by_files"):
        source = (Path(__file__).with_name("hostile") / f"{name}.py").read_text()
        outcome = run_tests(source, job, allow_code_execution=True, isolation=Isolation(()))
        assert outcome.passed, (name, outcome)


@pytest.mark.parametrize(
    "owner",
    [
        "fcntl.fcntl(reader, 8, victim)",
        "fcntl.fcntl(reader, 15, struct.pack('ii', 1, victim))",
        "fcntl.ioctl(reader, 0x8901, struct.pack('i', victim))",
        "fcntl.ioctl(reader, 0x8902, struct.pack('i', victim))",
    ],
    ids=["F_SETOWN", "F_SETOWN_EX", "FIOSETOWN", "SIOCSPGRP"],
)
def test_the_filter_alone_keeps_files_from_signalling(owner: str) -> None:
    """A socket's owner gets a signal that ends it when data come; the control, without a filter, shows that it does."""
    if "seccomp" not in detect_isolation().layers:
        pytest.skip("this system has no seccomp")
    source = (
        "import fcntl, os, socket, struct\n"
        "def f(victim):\n"
        "    reader, writer = socket.socketpair()\n"
        "    flags = fcntl.fcntl(reader, fcntl.F_GETFL)\n"
        "    try:\n"
        f"        {owner}\n"
        "    except PermissionError:\n"
        "        return 'refused'\n"
        "    finally:\n"
        "        fcntl.fcntl(reader, fcntl.F_SETFL, flags | os.O_ASYNC)\n"
        "        writer.send(b'x')\n"
        "    return 'set'\n"
    )
    for layers, answer in ((("seccomp",), "refused"), ((), "set")):
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            job = TestJob(("f",), (f"assert f({victim.pid}) == {answer!r}",))
            outcome = run_tests(source, job, allow_code_execution=True, isolation=Isolation(layers))
            assert outcome.passed, (layers, outcome)
            if layers:
                assert victim.poll() is None
            else:
                assert victim.wait(10) == -signal.SIGIO
        finally:
            victim.kill()
            victim.wait()


def test_the_sandbox_dies_with_its_caller(tmp_path: Path) -> None:
    source = Path(running.__file__).parents[2]
    script = (
        "import sys, types\n"  # without the rest of the package, which takes seconds to import
        f"for name, folder in (('sparsepo', {str(source)!r}), ('sparsepo.evaluation', {str(source / 'evaluation')!r})):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [folder]\n"
        "from sparsepo.evaluation.sandbox import *\n"
        "run_tests('import time; time.sleep(100)', TestJob(('f',), ('f()',)), allow_code_execution=True)\n"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    end = time.monotonic() + 60
    while not (launched := _launched_by(caller.pid, 5)) and time.monotonic() < end:
        time.sleep(0.05)
    assert launched
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    while _launched_by(caller.pid, 1) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _launched_by(caller.pid, 1)


def _launched_by(caller: int, least: int) -> list[str]:
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if b"inside.launcher" in command and f'"caller": {caller},'.encode() in command:
            found.append(process)
    return found if len(found) >= least else []


def test_the_filter_is_for_known_machines_only() -> None:
    assert seccomp.program("x86_64", 1) != seccomp.program("aarch64", 1)
    assert all(0 <= yes < 256 and 0 <= no < 256 for _, yes, no, _ in seccomp.program("x86_64", 1))
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64", 1)


def test_detection_describes_itself() -> None:
    assert detect_isolation().describe()
