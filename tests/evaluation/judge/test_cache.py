"""Answers are paid for once: over runs, processes and kills."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from sparsepo.evaluation.judge import AnswerCache, Endpoint, Ledger, Manners, ask_all, default_cache, request_key
from tests.evaluation.judge.runs import ask, claim, reserve, start
from tests.evaluation.judge.server import JudgeServer, judge_server, says, slowed

BODY = {"model": "m", "messages": [{"role": "user", "content": "which?"}], "temperature": 0, "max_tokens": 20}


def test_the_key_is_of_the_content() -> None:
    assert request_key(BODY) == request_key(dict(reversed(BODY.items())))
    changes: list[dict[str, Any]] = [
        {"model": "other"},
        {"temperature": 1},
        {"max_tokens": 21},
        {"messages": [{"role": "system", "content": "which?"}]},
        {"seed": 1},
    ]
    sources = [None, "http://one/v1", "http://two/v1"]
    keys = {
        request_key(body, source) for body in (BODY, *({**BODY, **change} for change in changes)) for source in sources
    }
    assert len(keys) == 3 * (len(changes) + 1)
    # answers of earlier versions are found by this
    assert request_key(BODY) == "3df408de5f50df31dc712995cc86fe9d17763651c9a579229f0c52dc587be324"


def test_an_endpoint_is_known_by_its_address_or_its_name() -> None:
    assert Endpoint("http://Localhost:8000/v1/").source == Endpoint("http://localhost:8000/v1").source
    assert Endpoint("http://localhost:8000/v1").source != Endpoint("http://localhost:8001/v1").source
    assert Endpoint("http://localhost:8000/V1").source != Endpoint("http://localhost:8000/v1").source
    assert Endpoint("http://localhost:8000/v1", name="mine").source == "mine"


def test_an_answer_without_an_endpoint_goes_to_the_first_that_asks(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "c.sqlite")
    cache.put(request_key(BODY), {"content": "A"})
    one, two = request_key(BODY, "one"), request_key(BODY, "two")
    assert cache.adopt({one: request_key(BODY)}, dry_run=True) == {one}
    assert cache.known([one]) == set()
    assert cache.adopt({one: request_key(BODY)}) == {one}
    assert cache.get(one) == {"content": "A"}
    assert cache.adopt({two: request_key(BODY), one: request_key(BODY)}) == set()
    assert len(cache) == 1
    cache.put(request_key(BODY), {"content": "B"})  # an older version wrote it meanwhile
    assert cache.adopt({one: request_key(BODY)}) == set()
    assert cache.get(one) == {"content": "A"}


def test_endpoints_with_one_model_name_do_not_share_answers(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "c.sqlite")
    with (
        judge_server(verdict=lambda text: "Preferred: A") as one,
        judge_server(verdict=lambda text: "Preferred: B") as two,
    ):
        for server in (one, two, one):
            endpoint = Endpoint(server.url)
            ask_all({request_key(BODY, endpoint.source): BODY}, cache, Ledger(":memory:"), endpoint)
        assert [len(server.bodies) for server in (one, two)] == [1, 1]
        found = [cache.get(request_key(BODY, Endpoint(server.url).source)) for server in (one, two)]
    assert [answer["content"] for answer in found if answer is not None] == ["Preferred: A", "Preferred: B"]


def test_claims(tmp_path: Path) -> None:
    now = [100.0]
    one, other = (AnswerCache(tmp_path / "c.sqlite", clock=lambda: now[0]) for _ in range(2))
    assert one.claim("k", 10) == "mine"
    assert other.claim("k", 10) == "elsewhere"
    other.release("k")  # of another's claim nothing happens
    assert other.claim("k", 10) == "elsewhere"
    assert one.claim("k", 20) == "mine"  # prolonged
    now[0] += 15
    assert other.claim("k", 10) == "elsewhere"
    now[0] += 6
    assert other.claim("k", 10) == "mine"  # its time is over
    other.put("k", {"content": "A"})
    assert one.claim("k", 10) == "answered"
    one.put("k", {"content": "B"})
    assert one.get("k") == {"content": "A"}
    assert (one.known(["k", "l"]), len(one)) == ({"k"}, 1)


def test_the_claim_of_a_killed_process_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    process, results = start(claim, path, "k")
    assert results.get(timeout=60) == "mine"
    process.join(60)
    assert AnswerCache(path).claim("k", 10) == "mine"


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database\n" * 100)
    with pytest.raises(ValueError, match="not a usable SQLite file"):
        AnswerCache(tmp_path / "text")
    with sqlite3.connect(tmp_path / "later") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match=r"another version of the library \(99"):
        AnswerCache(tmp_path / "later")


def test_files_that_cannot_be_used_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="unable to open"):
        AnswerCache(tmp_path)
    cache = AnswerCache(tmp_path / "c")
    monkeypatch.setattr("sparsepo.evaluation.judge.database._PATIENCE", 0.05)
    other = AnswerCache(tmp_path / "c")
    with sqlite3.connect(tmp_path / "c", isolation_level=None) as holding:
        holding.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match="held by another process"):
            other.claim("k", 1)
        holding.execute("ROLLBACK")
    assert other.claim("k", 1) == "mine"
    assert cache.claim("k", 1) == "elsewhere"


def test_where_it_is_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sparsepo" / "judge.sqlite"


def test_two_processes_share_the_questions(tmp_path: Path) -> None:
    with judge_server(*[slowed(0.15, says("Preferred: A"))] * 24) as server:
        runs = [start(ask, server.url, tmp_path) for _ in range(2)]
        outcomes = [results.get(timeout=60) for _, results in runs]
        assert sum(answered for answered, _ in outcomes) == 12
        assert [answered + cached for answered, cached in outcomes] == [12, 12]
        assert len(server.bodies) == 12
        assert set(server.counts.values()) == {1}


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with judge_server(*[slowed(0.1, says("Preferred: A"))] * 60) as server:
        process, _ = start(ask, server.url, tmp_path)
        wait_for(server, 6)
        process.kill()
        process.join(60)
        kept = len(AnswerCache(tmp_path / "cache"))
        assert 0 < kept < 12
        sent = len(server.bodies)
        assert start(ask, server.url, tmp_path)[1].get(timeout=60) == (12 - kept, kept)
        assert len(server.bodies) == sent + 12 - kept
        # what was under way when it was killed may have been paid for: it stays in the ledger at its bound
        by_end = Ledger(tmp_path / "ledger").summary()["by_end"]
        assert by_end["sent"] >= sent - kept
        assert sum(by_end.values()) == len(server.bodies)


def test_an_interrupt_leaves_no_claims(tmp_path: Path) -> None:
    with judge_server(*[slowed(0.5, says("Preferred: A"))] * 60) as server:
        process, _ = start(ask, server.url, tmp_path)
        wait_for(server, 3)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode not in (0, None)
        with sqlite3.connect(tmp_path / "cache") as connection:
            assert connection.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)


def wait_for(server: JudgeServer, requests: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.bodies) < requests:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_cap_holds_over_processes(tmp_path: Path) -> None:
    runs = [start(reserve, tmp_path / "ledger", 40) for _ in range(3)]
    assert sum(results.get(timeout=60) for _, results in runs) == 40
    assert Ledger(tmp_path / "ledger").summary()["requests"] == 40


def test_questions_that_are_alike_are_asked_once() -> None:
    with judge_server() as server:
        bodies = {request_key(body): body for body in (BODY, dict(BODY))}
        ask_all(bodies, AnswerCache(":memory:"), Ledger(":memory:"), Endpoint(server.url), Manners(parallel=2))
        assert len(server.bodies) == 1
