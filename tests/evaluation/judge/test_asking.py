"""Asking a server that misbehaves: what is tried again, what stops, what is counted, and what it costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.evaluation.judge import AnswerCache, Endpoint, JudgeError, Ledger, Manners, Prices, ask_all, request_key
from sparsepo.evaluation.judge.asking import Asked
from tests.evaluation.judge import server as replies
from tests.evaluation.judge.server import JudgeServer, completion, fails, judge_server, says, sends

pytest.importorskip("openai", reason="the openai package is not installed (pip install 'sparsepo[judge]')")
QUICK = Manners(parallel=1, retries=3, backoff=0.01)
KEY = "sk-very-secret-0123456789"


def body_of(text: str = "which?", **settings: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **settings}


class Desk:
    """A cache and a ledger in memory, and one way to ask."""

    def __init__(self, server: JudgeServer, cache: Any = ":memory:", ledger: Any = ":memory:", **caps: Any) -> None:
        self.endpoint = Endpoint(server.url, timeout=caps.pop("timeout", 5.0), key=caps.pop("key", KEY))
        self.cache, self.ledger = AnswerCache(cache), Ledger(ledger, Prices(1.0, 10.0), **caps)

    def ask(self, *texts: str, manners: Manners = QUICK, **settings: Any) -> Asked:
        bodies = {request_key(body): body for body in (body_of(text, **settings) for text in texts)}
        return ask_all(bodies, self.cache, self.ledger, self.endpoint, manners)

    def content(self, text: str = "which?") -> Any:
        answer = self.cache.get(request_key(body_of(text)))
        return None if answer is None else answer["content"]


BROKEN: dict[str, Any] = {
    "429": fails(429),
    "429 with seconds": fails(429, retry_after="0.05"),
    "429 with milliseconds": fails(429, retry_after_ms="50"),
    "429 with nonsense": fails(429, retry_after="soon"),
    "408": fails(408),
    "500": fails(500),
    "502 in HTML": sends(b"<html>Bad Gateway</html>", 502, "text/html"),
    "503 without a body": sends(b"", 503),
    "reset": replies.resets,
    "half a body": replies.breaks_off,
    "half of the JSON": sends(b'{"choices": [{"message": {"content": "Preferred: A"'),
    "other JSON": sends({"status": "fine"}),
    "a JSON list": sends([1, 2]),
    "deep JSON": sends(b"[" * 100_000),
    "HTML with 200": sends(b"<html>Please log in</html>", content_type="text/html"),
    "no choices": sends({**completion("x"), "choices": []}),
    "choices of another kind": sends({**completion("x"), "choices": {"0": "x"}}),
    "no message": sends({"choices": [{"index": 0}]}),
    "an error with 200": sends({"error": {"message": "overloaded"}}),
    "content of another kind": says(["Preferred: A"]),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_what_may_pass_is_tried_again(reply: Any) -> None:
    with judge_server(reply) as server:
        desk = Desk(server)
        asked = desk.ask("which?")
        assert desk.content() == "Preferred: A"
        assert (asked.answered, asked.failed, asked.retried.total()) == (1, {}, 1)
        assert len(server.bodies) == 2  # the openai package has sent nothing by itself
        assert desk.ledger.summary()["by_end"] == {"answered": 1, "failed": 1}


@pytest.mark.parametrize("reply", [replies.drips, replies.slowed(2.0, says("late"))], ids=["drip", "silence"])
def test_a_slow_answer_is_given_up_in_time(reply: Any) -> None:
    with judge_server(reply) as server:
        begun = time.monotonic()
        desk = Desk(server, timeout=0.4)
        asked = desk.ask("which?")
        assert time.monotonic() - begun < 1.8
        assert desk.content() == "Preferred: A"
        assert list(asked.retried) == ["no whole answer within 0.4 s"]


def test_retry_after_is_honoured_by_all_requests() -> None:
    with judge_server(fails(429, retry_after="0.5")) as server:
        desk = Desk(server)
        desk.ask("one", "two", "three")
        assert server.times[1] - server.times[0] >= 0.5
        assert len(server.bodies) == 4


def test_retry_after_may_be_a_date() -> None:
    with judge_server(fails(429, retry_after=replies.in_seconds(2.5))) as server:  # dates have whole seconds
        Desk(server).ask("which?")
        assert 1.0 <= server.times[1] - server.times[0] < 4.0


def test_a_wait_that_is_too_long_stops() -> None:
    with judge_server(fails(429, "come back tomorrow", retry_after="86400")) as server:
        with pytest.raises(JudgeError, match=r"come back tomorrow.*asks to wait 86400 s.*--max_wait 300"):
            Desk(server).ask("one", "two")
        assert len(server.bodies) == 1


def test_pauses_grow_and_are_not_alike() -> None:
    with judge_server(*[fails(500)] * 4) as server:
        Desk(server).ask("which?", manners=Manners(parallel=1, retries=4, backoff=0.1))
        pauses = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    for doubled, pause in zip((0.1, 0.2, 0.4, 0.8), pauses, strict=True):
        assert 0.5 * doubled <= pause <= doubled + 0.15


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (fails(401, "bad key"), r"HTTP 401: bad key.*does not accept the key.*SPARSEPO_API_KEY"),
        (fails(402), r"no money"),
        (fails(403), r"may not use"),
        (fails(404, "no model m"), r"no model m.*--judge_model"),
        (fails(429, "quota", code="insufficient_quota"), r"no money left"),
        (sends(b"", 302, location="http://127.0.0.1:1/"), r"sends elsewhere"),
    ],
    ids=["401", "402", "403", "404", "quota", "302"],
)
def test_what_no_try_mends_stops_at_once(reply: Any, message: str) -> None:
    with judge_server(reply, reply) as server:
        with pytest.raises(JudgeError, match=message):
            Desk(server).ask("one", "two", "three")
        assert len(server.bodies) == 1


def test_answers_from_before_a_stop_are_kept() -> None:
    with judge_server(says("Preferred: B"), fails(401)) as server:
        desk = Desk(server)
        with pytest.raises(JudgeError):
            desk.ask("one", "two", "three")
        assert (desk.content("one"), desk.content("two")) == ("Preferred: B", None)
        assert desk.ask("one", "two", "three").cached == 1
        assert len(server.bodies) == 4


def test_one_refused_request_is_counted_and_the_rest_goes_on() -> None:
    with judge_server(says("Preferred: B"), fails(400, "too long")) as server:
        desk = Desk(server)
        asked = desk.ask("one", "two", "three")
        assert list(asked.failed.values()) == ["HTTP 400: too long"]
        assert asked.answered == 2
        assert len(server.bodies) == 3


def test_settings_that_the_endpoint_refuses_stop_after_three() -> None:
    with judge_server(*[fails(400, "max_tokens is unknown")] * 9) as server:
        with pytest.raises(JudgeError, match="refuses the requests: HTTP 400: max_tokens is unknown"):
            Desk(server).ask(*map(str, range(9)))
        assert len(server.bodies) == 3


def test_an_endpoint_that_is_down_stops() -> None:
    with judge_server(*[fails(500, "down")] * 100) as server:
        manners = Manners(parallel=1, retries=1, backoff=0.001)
        with pytest.raises(
            JudgeError, match=r"5 requests in a row had no answer, the last after 2 tries: HTTP 500: down"
        ):
            Desk(server).ask(*map(str, range(20)), manners=manners)
        assert len(server.bodies) == 10
    with pytest.raises(JudgeError, match="connection failed"):  # nobody listens there any more
        Desk(server).ask(*map(str, range(20)), manners=manners)


def test_a_request_that_never_has_an_answer_is_counted_and_asked_again_later() -> None:
    with judge_server(*[fails(500)] * 4) as server:
        desk = Desk(server)
        asked = desk.ask("one", "two")
        assert len(asked.failed) == 1
        assert asked.answered == 1
        assert desk.ask("one", "two").answered == 1


def test_lost_answers_that_may_be_paid_are_retried_less() -> None:
    with judge_server(*[sends({"status": "fine"})] * 9) as server:
        Desk(server).ask("which?", manners=Manners(parallel=1, retries=8, backoff=0.001))
        assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (says(None), {"content": None, "finish_reason": "stop"}),
        (says(None, message={"refusal": "I cannot"}), {"refusal": "I cannot"}),
        (says(None, finish_reason="content_filter"), {"finish_reason": "content_filter"}),
        (sends(completion("x", usage=None), content_type="text/plain"), {"content": "x", "usage": None}),
        (sends({"choices": [{"message": {"content": "bare"}}]}), {"content": "bare", "usage": None, "model": None}),
    ],
    ids=["null", "refusal", "filtered", "wrong content type", "least of an answer"],
)
def test_odd_answers_are_answers_and_paid_once(reply: Any, expected: dict[str, Any]) -> None:
    with judge_server(reply) as server:
        desk = Desk(server)
        assert desk.ask("which?").answered == 1
        answer = desk.cache.get(request_key(body_of()))
        assert answer is not None
        assert {name: answer[name] for name in expected} == expected
        assert desk.ask("which?").cached == 1
        assert len(server.bodies) == 1


def test_what_is_sent() -> None:
    with judge_server() as server:
        Desk(server).ask("which?", temperature=0, logit_bias={"3": 1})
        assert server.bodies == [{**body_of(), "temperature": 0, "logit_bias": {"3": 1}}]
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_no_more_requests_at_once_than_asked_for() -> None:
    with judge_server(*[replies.slowed(0.05, says("Preferred: A"))] * 12) as server:
        Desk(server).ask(*map(str, range(12)), manners=Manners(parallel=3))
        assert server.most_at_once == 3


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


def test_manners_out_of_range() -> None:
    for wrong in ({"parallel": 0}, {"retries": -1}, {"backoff": float("nan")}, {"max_wait": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Manners(**wrong)  # type: ignore[arg-type]


def test_inside_a_running_loop() -> None:
    import asyncio

    async def notebook(ask: Callable[[], Asked]) -> Asked:
        return ask()

    with judge_server() as server:
        asked = asyncio.run(notebook(lambda: Desk(server).ask("which?")))
        assert asked.answered == 1
