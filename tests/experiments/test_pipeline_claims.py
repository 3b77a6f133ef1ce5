"""Claims on a shared folder: one holder at a time, whoever dies is followed, whoever lost knows it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sparsepo.experiments.pipeline.claims import ClaimLostError, Claims, own_holder

CONTEXT = multiprocessing.get_context("fork")


def _age(folder: Path, name: str, seconds: float) -> None:
    path = folder / name
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def _foreign(folder: Path, name: str) -> None:
    """Make a claim look as if a process of another machine had made it."""
    holder = replace(own_holder(), host="elsewhere", place="another boot", pid=1)
    (folder / name).write_text(json.dumps(asdict(holder)), encoding="utf-8")


def test_a_claim_has_one_holder_and_ends_with_its_context(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    held = claims.take("k")
    assert held is not None
    with held:
        assert claims.take("k") is None
        assert claims.take("other") is not None
        found = claims.current("k")
        assert found is not None
        assert found.holder is not None
        assert found.holder.pid == os.getpid()
        assert not found.is_stale(300)
    assert claims.current("k") is None
    assert claims.take("k") is not None


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.take("train-b0.5") is not None
    assert claims.take("train-b0") is not None
    assert claims.take("train-b0.5.1") is not None


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_takers_one_succeeds(tmp_path: Path, stale: bool) -> None:
    """Threads that start together; processes meet in test_pipeline_working.py."""
    for attempt in range(20):
        key = f"k{attempt}"
        if stale:
            assert Claims(tmp_path).take(key) is not None
            _foreign(tmp_path, f"{key}.1")
            _age(tmp_path, f"{key}.1", 1000)
        ready, taken = threading.Barrier(6), []

        def race(key: str = key, ready: threading.Barrier = ready, taken: list[bool] = taken) -> None:
            ready.wait()
            taken.append(Claims(tmp_path).take(key) is not None)

        takers = [threading.Thread(target=race) for _ in range(6)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert sorted(taken) == [False] * 5 + [True]


def _hold(folder: str, taken: Any) -> None:
    held = Claims(folder).take("k")
    assert held is not None
    with held:
        taken.set()
        time.sleep(60)


def test_the_claim_of_a_killed_process_is_free_at_once_on_its_machine(tmp_path: Path) -> None:
    taken = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold, args=(str(tmp_path), taken))
    process.start()
    assert taken.wait(20)
    claims = Claims(tmp_path, stale_after=1000)
    assert claims.take("k") is None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    found = claims.current("k")
    assert found is not None
    assert found.holder is not None
    assert found.holder.has_ended()
    assert claims.take("k") is not None


def test_another_machines_claim_is_taken_over_only_after_its_time(tmp_path: Path) -> None:
    claims = Claims(tmp_path, stale_after=100)
    assert claims.take("k") is not None
    _foreign(tmp_path, "k.1")  # its process number means nothing here
    assert claims.take("k") is None
    _age(tmp_path, "k.1", 90)
    assert claims.take("k") is None
    _age(tmp_path, "k.1", 20)
    assert claims.take("k") is not None


def test_the_heartbeat_keeps_a_claim(tmp_path: Path) -> None:
    held = Claims(tmp_path, stale_after=0.5).take("k")
    assert held is not None
    with held:
        _foreign(tmp_path, "k.1")
        time.sleep(1.2)
        assert Claims(tmp_path, stale_after=0.5).take("k") is None


def test_who_lost_a_claim_is_told_and_leaves_the_new_one_alone(tmp_path: Path) -> None:
    claims = Claims(tmp_path, stale_after=0.4)
    old = claims.take("k")
    assert old is not None
    told: list[bool] = []
    old.when_lost = lambda: told.append(True)
    _foreign(tmp_path, "k.1")
    _age(tmp_path, "k.1", 10)
    new = claims.take("k")
    assert new is not None
    with old:
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        assert told
        with pytest.raises(ClaimLostError, match="taken this over"):
            old.check()
    new.check()
    found = claims.current("k")
    assert found is not None
    assert found.number == new.number


def test_ages_are_by_the_clock_that_stamps_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose own clock is an hour ahead must not take what is alive."""
    claims = Claims(tmp_path, stale_after=100)
    assert claims.take("k") is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert claims.take("k") is None


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    claims = Claims(tmp_path)
    assert claims.take("k") is not None
    assert claims.take("k") is None
    found = claims.current("k")
    assert found is not None
    assert found.holder == replace(own_holder(), since=found.holder.since if found.holder else 0)


def test_a_time_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stale_after=0"):
        Claims(tmp_path, stale_after=0)
