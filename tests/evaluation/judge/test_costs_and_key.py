"""What asking costs and where it stops; and that the key is nowhere but in the request."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from sparsepo.evaluation.judge import Endpoint, JudgeError, Manners, ask_all, request_key
from tests.evaluation.judge import server as replies
from tests.evaluation.judge.desk import KEY, Desk, body_of
from tests.evaluation.judge.server import completion, fails, judge_server, says, sends

pytest.importorskip("openai", reason="the openai package is not installed (pip install 'sparsepo[judge]')")


# ---- costs ----


def test_the_ledger_says_what_the_server_counted() -> None:
    with judge_server() as server:
        desk = Desk(server)
        desk.ask("one", "two")
        expected = {"requests": 2, "tokens_in": 200, "tokens_out": 20, "cost": pytest.approx(400e-6)}
        assert {name: desk.ledger.summary()[name] for name in expected} == expected


@pytest.mark.parametrize("parallel", [1, 4])
def test_the_cap_is_never_exceeded_and_nearly_used(tmp_path: Path, parallel: int) -> None:
    # an answer costs 100 + 100 millionths; set aside for one: 64 + 5 for the prompt and 10 · 20 for the answer
    cap = 2000e-6
    with judge_server() as server:
        desk = Desk(server, tmp_path / "cache", tmp_path / "ledger", max_cost=cap)
        asked = desk.ask(*(f"text {i}" for i in range(16)), manners=Manners(parallel=parallel))
        spent = desk.ledger.summary()["cost"]
        assert spent <= cap
        assert spent >= cap - 270e-6
        assert asked.answered == len(server.bodies) == 9
        assert "more than --max_cost 0.002" in asked.stopped
        # a second run into the same folder spends nothing more; a higher cap goes on where it stopped
        again = Desk(server, tmp_path / "cache", tmp_path / "ledger", max_cost=cap)
        assert again.ask(*(f"text {i}" for i in range(16))).answered == 0
        more = Desk(server, tmp_path / "cache", tmp_path / "ledger", max_cost=1.0)
        assert more.ask(*(f"text {i}" for i in range(16))).answered == 7
        assert set(server.counts.values()) == {1}


def test_the_number_of_requests_is_capped_with_retries_counted() -> None:
    with judge_server(fails(500), fails(500)) as server:
        asked = Desk(server, max_requests=5).ask(*map(str, range(9)))
        assert len(server.bodies) == 5
        assert asked.answered == 3
        assert "--max_requests 5" in asked.stopped


def test_a_lost_answer_counts_as_paid() -> None:
    with judge_server(replies.breaks_off) as server:
        desk = Desk(server, max_cost=1.0)
        desk.ask("which?")
        bound = (64 + len("which?")) * 1e-6 + 20 * 10e-6
        assert desk.ledger.summary()["cost"] == pytest.approx(200e-6 + bound)


def test_what_was_never_sent_costs_nothing() -> None:
    with judge_server() as server:
        desk = Desk(server)
    asked = desk.ask("which?")  # nobody listens there any more
    assert asked.retried.total() == 4
    assert desk.ledger.summary()["by_end"] == {"failed": 4}
    assert desk.ledger.summary()["cost"] == 0


def test_answers_whose_tokens_nobody_counts_cost_their_bound() -> None:
    with judge_server(sends(completion("12345", usage={"prompt_tokens": "many"}))) as server:
        desk = Desk(server)
        desk.ask("which?")
        assert desk.ledger.summary()["tokens_in"] == 64 + len("which?")
        assert desk.ledger.summary()["tokens_out"] == 6


def test_a_cap_needs_a_longest_answer() -> None:
    with judge_server() as server:
        desk = Desk(server, max_cost=1.0)
        body = {name: value for name, value in body_of().items() if name != "max_tokens"}
        with pytest.raises(ValueError, match="needs a longest answer"):
            ask_all({request_key(body): body}, desk.cache, desk.ledger, desk.endpoint)


# ---- the key ----


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_the_key_stays_out_of_errors_logs_and_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.DEBUG)

    def reply(handler: Any) -> None:
        sent = handler.headers["Authorization"]
        if status == 200:
            says(f"Preferred: A ({sent})", model=f"judge {sent}")(handler)
        else:
            fails(status, f"no: {sent}")(handler)

    seen = []
    with judge_server(*[reply] * 20) as server:
        desk = Desk(server, tmp_path / "cache", tmp_path / "ledger")
        try:
            asked = desk.ask("one", manners=Manners(parallel=1, retries=1, backoff=0.001))
            seen += [repr(asked), repr(desk.cache.get(request_key(body_of("one"))))]
        except JudgeError as error:
            seen += [str(error), repr(error), repr(error.__cause__)]
        seen += [repr(desk.endpoint)]
    assert any("[key]" in text for text in seen)
    assert KEY not in "".join(seen)
    assert KEY not in caplog.text
    assert any(KEY in value for headers in server.headers for value in headers.values())
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("localhost:8000/v1", None, "give the address"),
        ("ftp://host/v1", None, "give the address"),
        ("http://host:port/v1", None, "give the address"),
        ("https://me:word@host/v1", None, "SPARSEPO_API_KEY"),
        ("https://host/v1?key=abc", None, "SPARSEPO_API_KEY"),
        ("https://host/v1/chat/completions", None, "leave /chat/completions off"),
        ("https://host/v1", "two words", "not copied whole"),
        ("https://host/v1", "kéy", "not copied whole"),
    ],
)
def test_wrong_addresses_and_keys_are_refused_without_showing_the_key(url: str, key: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Endpoint(url, key=key)
    assert key is None or key not in str(caught.value)
    assert "me:word" not in str(caught.value)


def test_a_key_in_the_clear_is_noticed() -> None:
    assert Endpoint("http://far.example/v1", key=KEY).sends_key_in_the_clear
    assert not Endpoint("https://far.example/v1", key=KEY).sends_key_in_the_clear
    assert not Endpoint("http://localhost:8000/v1", key=KEY).sends_key_in_the_clear
    assert not Endpoint("http://far.example/v1").sends_key_in_the_clear


def test_organisations_go_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    with judge_server() as server:
        Desk(server).ask("which?")
        assert "of-mine" not in str(server.headers)
