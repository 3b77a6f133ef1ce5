"""Programs that mean harm are contained and counted as failed, under every way of containing them."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparsepo.evaluation.sandbox import Isolation, Limits, TestJob, detect_isolation, run_tests
from sparsepo.evaluation.sandbox.settings import MiB

FOLDER = Path(__file__).with_name("hostile")
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))
JOB = TestJob(("add",), ("assert add(1, 2) == 3", "assert add(20, 30) == 50"))
LIMITS = Limits(wall_seconds=5, cpu_seconds=1, memory_bytes=256 * MiB, output_bytes=MiB, threads=16)
# What a system may have: everything; a container without user namespaces; a kernel without Landlock and seccomp
WAYS = {
    "all": ("namespaces", "landlock", "seccomp"),
    "container": ("landlock", "seccomp"),
    "namespaces": ("namespaces",),
}
# What one way alone does not prevent (docs/code.md says so): with namespaces alone processes can be made, up to the limit
# and inside; they die with the first. Memory by anonymous files is what only the filter of system calls sees.
NOT_PREVENTED = {
    "namespaces": {
        "fork_bomb",
        "fork_bomb_raw",
        "run_program",
        "daemon",
        "memory_by_files",
        "gains_rights",
        "kills_others",
        "signals_by_files",
    }
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A listening port and abstract socket; nobody may connect."""
    name = f"sparsepo-{secrets.token_hex(8)}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{name}")
        local.listen()
        yield tcp.getsockname()[1], name


def leftovers() -> list[int]:
    """Processes that this one's sandboxes have left: forks show the command of their first parent."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if b"inside.launcher" in command and f'"caller": {os.getpid()},'.encode() in command:
            found.append(int(process))
    return found


def check(name: str, way: str, canary: Path, server: tuple[int, str], secret: str) -> None:
    missing = set(WAYS[way]) - set(detect_isolation().layers)
    if missing:
        pytest.skip(f"this system has no {', '.join(sorted(missing))}")
    source = (FOLDER / f"{name}.py").read_text()
    expected = source.splitlines()[1].removeprefix("# expected: ").split()
    values = {"CANARY": canary, "PORT": server[0], "SOCKET": server[1], "CALLER": os.getpid(), "SECRET": secret}
    for key, value in values.items():
        source = source.replace(f"@{key}@", str(value))
    limits = replace(LIMITS, wall_seconds=1) if name == "sleeper" else LIMITS
    start = time.monotonic()
    outcome = run_tests(source, JOB, allow_code_execution=True, limits=limits, isolation=Isolation(WAYS[way]))
    assert time.monotonic() - start < LIMITS.wall_seconds + 15
    assert leftovers() == []
    assert sorted(path.name for path in canary.iterdir()) == ["kept.txt"]
    assert (canary / "kept.txt").read_text() == "kept"
    assert (canary / "kept.txt").stat().st_mode & 0o777 == 0o644
    assert len(outcome.printed) <= 500
    if name not in NOT_PREVENTED.get(way, ()):
        assert not outcome.passed
        assert outcome.kind in expected, outcome


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    (folder / "kept.txt").chmod(0o644)
    return folder


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    value = secrets.token_hex(16)
    monkeypatch.setenv("SPARSEPO_TEST_KEY", value)
    return value[::-1]  # written backwards in the program, so that it does not find its own source


@pytest.mark.parametrize("name", PROGRAMS)
def test_contained_and_counted_as_failed(name: str, canary: Path, server: tuple[int, str], secret: str) -> None:
    check(name, "all", canary, server, secret)


@pytest.mark.long
@pytest.mark.parametrize("way", ["container", "namespaces"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_layer_alone(name: str, way: str, canary: Path, server: tuple[int, str], secret: str) -> None:
    check(name, way, canary, server, secret)


def test_threads_of_the_caller_do_not_matter(canary: Path, server: tuple[int, str], secret: str) -> None:
    """Sandboxes are started from worker threads, beside each other."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            outcome = run_tests("def add(a, b):\n    return a + b", JOB, allow_code_execution=True, limits=LIMITS)
            assert outcome.passed
            assert outcome.tests == (True, True)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert leftovers() == []
