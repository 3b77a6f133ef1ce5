"""Asking a server that misbehaves: what is tried again, what stops, what is counted, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from sparsepo.evaluation.judge import JudgeError, Manners, request_key
from sparsepo.evaluation.judge.asking import Asked
from tests.evaluation.judge import server as replies
from tests.evaluation.judge.desk import KEY, Desk, body_of
from tests.evaluation.judge.server import completion, fails, judge_server, says, sends

pytest.importorskip("openai", reason="the openai package is not installed (pip install 'sparsepo[judge]')")
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


@pytest.mark.parametrize("reply", [replies.drips, replies.slowed(6.0, says("late"))], ids=["drip", "silence"])
def test_a_slow_answer_is_given_up_in_time(reply: Any) -> None:
    with judge_server(reply) as server:
        begun = time.monotonic()
        desk = Desk(server, timeout=0.4)
        asked = desk.ask("which?")
        assert time.monotonic() - begun < 5
        assert desk.content() == "Preferred: A"
        assert list(asked.retried) == ["no whole answer within 0.4 s"]


def test_retry_after_is_honoured_by_all_requests() -> None:
    later = [replies.slowed(0.2, says("Preferred: A"))] * 8
    with judge_server(fails(429, retry_after="1.0"), *later) as server:
        Desk(server).ask(*map(str, range(8)), manners=Manners(parallel=3, backoff=0.01))
        assert len(server.bodies) == 9
        # three were sent before the answer came; those that are free before the second is over wait with the first
        assert min(server.times[3:]) - server.times[0] >= 1.0


def test_retry_after_may_be_a_date() -> None:
    with judge_server(fails(429, retry_after=replies.in_seconds(2.5))) as server:  # dates have whole seconds
        Desk(server).ask("which?")
        assert 1.0 <= server.times[1] - server.times[0] < 8.0


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
        assert 0.5 * doubled <= pause <= doubled + 0.5  # the latter for busy machines


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
        (sends(b'{"choices": [{"message": {"content": "half \\ud83d"}}]}'), {"content": "half ?"}),
        (sends({"choices": [{"message": {"content": "bare"}}]}), {"content": "bare", "usage": None, "model": None}),
    ],
    ids=["null", "refusal", "filtered", "wrong content type", "surrogate", "least of an answer"],
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
    with judge_server(*[replies.slowed(0.15, says("Preferred: A"))] * 12) as server:
        Desk(server).ask(*map(str, range(12)), manners=Manners(parallel=3))
        assert 2 <= server.most_at_once <= 3


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
