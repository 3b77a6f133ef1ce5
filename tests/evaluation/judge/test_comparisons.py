"""Rows of two files → comparisons → requests and verdicts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation.judge import (
    AnswerCache,
    Asked,
    Comparison,
    Prices,
    comparisons_of,
    forecast,
    join_answers,
    judge_by_rewards,
    load_template,
    request_key,
    requests_of,
    settings_with,
    verdicts_of,
)
from sparsepo.evaluation.judge.verdicts import UNANSWERED


def rows(*pairs: tuple[Any, Any], name: str = "response") -> list[tuple[str, dict[str, Any]]]:
    return [(f"file, line {i}", {"prompt": prompt, name: text}) for i, (prompt, text) in enumerate(pairs, start=1)]


def test_rows_meet_by_their_prompts_whatever_the_order() -> None:
    joined = join_answers(rows(("p", "a"), ("q", "b")), rows(("q", "c"), ("p", "d"), name="text"))
    assert joined.comparisons == [Comparison("p", "a", "d"), Comparison("q", "b", "c")]
    assert joined.complaints(["one", "two"]) == []


def test_several_answers_to_a_prompt_meet_in_order() -> None:
    joined = join_answers(rows(("p", "a"), ("p", "b"), ("p", "c")), rows(("p", "d"), ("p", "e")))
    assert joined.comparisons == [Comparison("p", "a", "d", 0), Comparison("p", "b", "e", 1)]
    assert joined.only_candidate == {"p": 1}
    assert joined.prompts == 1


def test_answers_without_a_partner_are_named() -> None:
    joined = join_answers(rows(("p", "a"), *((f"only {i}", "x") for i in range(7))), rows(("p", "b"), ("mine", "c")))
    first, second = joined.complaints(["sparsepo", "dpo"])
    assert first.startswith(
        '7 of the answers of sparsepo have no partner and are left out; prompts: "only 0", "only 1"'
    )
    assert first.endswith("and 2 more")
    assert '"mine"' in second


def test_messages_are_prompts_too() -> None:
    messages = [{"role": "user", "content": "hello"}]
    joined = join_answers(rows((messages, [{"role": "assistant", "content": "a"}])), rows((messages, "b")))
    assert joined.comparisons == [Comparison("user: hello", "a", "b")]
    assert joined.comparisons[0].messages == messages


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    (own,) = join_answers(rows(("p \ud800", "a \udfff")), rows(("p \ud800", "b"))).comparisons
    assert (own.prompt, own.candidate) == ("p ?", "a ?")


def test_one_file_with_both_answers() -> None:
    found = comparisons_of(
        [
            ("line 1", {"prompt": "p", "response_a": "a", "response_b": "b"}),
            ("line 2", {"prompt": "p", "chosen": "c", "rejected": "d"}),
        ]
    )
    assert found.comparisons == [Comparison("p", "a", "b", 0), Comparison("p", "c", "d", 1)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, r"file, line 1: no answer; one of response, text, .* is needed, found prompt"),
        ({"response": "a"}, "file, line 1: no prompt; found response"),
        ({"prompt": 3, "response": "a"}, "file, line 1: prompt is neither a text nor messages"),
        ({"prompt": "p", "text": None}, "file, line 1: text is neither a text nor one message"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "holds both answers: give that file alone"),
    ],
)
def test_rows_that_cannot_be_read_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_answers([("file, line 1", row)], rows(("p", "a")))


def test_files_without_a_common_prompt() -> None:
    with pytest.raises(ValueError, match=r'No prompt is in both files.*"p" and "q"'):
        join_answers(rows(("p", "a")), rows(("q", "a")))
    with pytest.raises(ValueError, match="needs prompt, and response_a and response_b or"):
        comparisons_of([("line 1", {"prompt": "p", "response": "a"})])
    with pytest.raises(ValueError, match="no rows"):
        comparisons_of([])


def test_first_prompts() -> None:
    joined = join_answers(rows(("p", "a"), ("q", "b"), ("p", "c")), rows(("p", "d"), ("p", "e"), ("q", "f")))
    assert [own.prompt for own in joined.first(1).comparisons] == ["p", "p"]


# ---- requests ----

TEMPLATE = load_template("tldr")
PAIRS = [Comparison("p", "good", "bad"), Comparison("q", "same", "same "), Comparison("r", "long", "short")]


def test_both_orders_are_asked_and_identical_answers_are_not() -> None:
    bodies, keys = requests_of(PAIRS, TEMPLATE, "m", settings_with({}), "here")
    assert len(bodies) == 4
    assert keys[1] is None
    assert keys[0] is not None
    first, second = (bodies[key]["messages"][-1]["content"] for key in keys[0])
    assert first.index("good") < first.index("bad")
    assert second.index("bad") < second.index("good")
    assert all(key == request_key(body, "here") for key, body in bodies.items())


def test_settings() -> None:
    assert settings_with({}) == {"temperature": 0, "max_tokens": 512}
    changed = settings_with({"max_tokens": None, "max_completion_tokens": 9})
    assert changed == {"temperature": 0, "max_completion_tokens": 9}
    for name in ("model", "messages", "stream", "n"):
        with pytest.raises(ValueError, match=name):
            settings_with({name: 1})


def test_answers_are_read_and_missing_ones_are_told_apart() -> None:
    _, keys = requests_of(PAIRS, TEMPLATE, "m", settings_with({}), "here")
    cache, asked = AnswerCache(":memory:"), Asked()
    assert keys[0] is not None
    for key, letter in zip(keys[0], "AB", strict=True):
        cache.put(key, {"content": f"Preferred: {letter}", "refusal": None})
    unasked = verdicts_of(PAIRS, keys, TEMPLATE, cache, asked)
    assert [own.score for own in unasked] == [1.0, 0.5, None]
    assert [own.unasked for own in unasked] == [False, False, True]
    assert keys[2] is not None
    asked.failed = dict.fromkeys(keys[2], "HTTP 500")
    failed = verdicts_of(PAIRS, keys, TEMPLATE, cache, asked)
    assert not failed[2].unasked
    assert [own.problem for own in failed[2].judgements] == [UNANSWERED, UNANSWERED]
    row = failed[0].to_json()
    assert [own["shown_first"] for own in row["orders"]] == ["candidate", "baseline"]
    assert [own["outcome"] for own in row["orders"]] == ["first", "second"]


def test_forecast() -> None:
    bodies, _ = requests_of(PAIRS, TEMPLATE, "m", settings_with({"max_tokens": 100}), "here")
    found = forecast(bodies, set(list(bodies)[:1]), TEMPLATE, Prices(1.0, 2.0))
    assert [found[name] for name in ("requests", "cached", "to_ask")] == [4, 1, 3]
    assert found["about"]["tokens_out"] == 3 * TEMPLATE.answer_tokens
    assert found["at_most"]["tokens_out"] == 300
    characters = sum(len(body["messages"][0]["content"]) for body in list(bodies.values())[1:])
    assert found["about"]["tokens_in"] == pytest.approx(characters / 4, abs=3)
    assert characters < found["at_most"]["tokens_in"] < characters + 3 * 80
    assert found["at_most"]["cost"] == pytest.approx((found["at_most"]["tokens_in"] + 600) / 1e6)
    without = forecast(requests_of(PAIRS, TEMPLATE, "m", {}, "here")[0], set(), TEMPLATE, None)
    assert without["at_most"] is None


# ---- reward models ----


def by_length(prompts: Any, texts: Any) -> list[float]:
    return [float(len(text)) for text in texts]


def test_the_higher_reward_wins() -> None:
    verdicts = judge_by_rewards(
        [Comparison("p", "long", "x"), Comparison("p", "x", "long"), Comparison("p", "x", "y")], by_length
    )
    assert [(own.score, own.margin) for own in verdicts] == [(1.0, 3.0), (0.0, -3.0), (0.5, 0.0)]
    wide = judge_by_rewards([Comparison("p", "long", "x")], by_length, tie_margin=3.0)
    assert wide[0].score == 0.5


@given(st.lists(st.tuples(st.sampled_from("pq"), st.text(max_size=3), st.text(max_size=3)), min_size=1, max_size=8))
def test_swapping_the_sides_mirrors_the_scores(triples: list[tuple[str, str, str]]) -> None:
    own = judge_by_rewards([Comparison(*triple) for triple in triples], by_length)
    other = judge_by_rewards([Comparison(p, b, a) for p, a, b in triples], by_length)
    assert [verdict.score for verdict in own] == [1 - (verdict.score or 0) for verdict in other]


def test_an_answer_is_scored_once_and_messages_stay_messages() -> None:
    calls: list[Any] = []
    messages = [{"role": "user", "content": "hello"}]

    def scorer(prompts: Any, texts: Any) -> list[float]:
        calls.append((prompts, texts))
        return by_length(prompts, texts)

    pairs = [Comparison("user: hello", "a", "b", 0, messages), Comparison("user: hello", "a", "c", 1, messages)]
    judge_by_rewards(pairs, scorer)
    assert calls == [([messages] * 3, ["a", "b", "c"])]


def test_rewards_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="gave nan for the answer 'a' to 'p'"):
        judge_by_rewards([Comparison("p", "a", "b")], lambda prompts, texts: [float("nan")] * len(texts))
    with pytest.raises(ValueError, match="gave 1 rewards for 2 answers"):
        judge_by_rewards([Comparison("p", "a", "b")], lambda prompts, texts: [1.0])
    with pytest.raises(ValueError, match="tie_margin"):
        judge_by_rewards([Comparison("p", "a", "b")], by_length, tie_margin=-1)
