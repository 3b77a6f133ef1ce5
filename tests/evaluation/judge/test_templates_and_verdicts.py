"""Prompts for judges, and what is read from their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation.judge import load_template, template_names
from sparsepo.evaluation.judge.verdicts import (
    CUT_OFF,
    EMPTY,
    NO_VERDICT,
    REFUSED,
    SEVERAL,
    UNKNOWN,
    Judgement,
    VerdictForm,
    are_consistent,
    score_of,
)

LINE = VerdictForm("line", {"A": "first", "B": "second"}, "Preferred")
WITH_TIE = VerdictForm("line", {"A": "first", "B": "second", "tie": "tie"}, "Preferred")
WHOLE = VerdictForm("whole", {"m": "first", "M": "second"})
MARKER = VerdictForm("marker", {"A": "first", "B": "second", "C": "tie"})

VERDICTS: list[tuple[VerdictForm, str, str]] = [
    (LINE, "Comparison: A says more.\nPreferred: A", "first"),
    (LINE, 'Comparison: B says more.\nPreferred: "B"', "second"),
    (LINE, "Comparison: it does.\n\n**Preferred:** B.\n", "second"),
    (LINE, "**Preferred**: **A**", "first"),
    (LINE, "preferred : (A)", "first"),
    (LINE, "Preferred: <B>", "second"),
    (LINE, "Preferred: A\nPreferred: A", "first"),
    (LINE, "<think>Preferred: B? No.</think>\nPreferred: A", "first"),
    (LINE, "Preferred： B", "second"),
    (WITH_TIE, "Preferred: tie", "tie"),
    (WHOLE, " M\n", "second"),
    (WHOLE, '"m".', "first"),
    (MARKER, "Both are fine. [[C]]", "tie"),
    (MARKER, "I said [[A]]. So: [[A]]", "first"),
]
MALFORMED: list[tuple[VerdictForm, str, str]] = [
    (LINE, "A is better.", NO_VERDICT),
    (LINE, "A", NO_VERDICT),
    (LINE, "The preferred one is: A", NO_VERDICT),
    (LINE, "Preferred:\nA", UNKNOWN),
    (LINE, "Preferred: neither", UNKNOWN),
    (LINE, "Preferred: tie", UNKNOWN),
    (LINE, "Preferred: a", UNKNOWN),
    (LINE, "Preferred: A and B", UNKNOWN),
    (LINE, "Preferred: Summary A", UNKNOWN),
    (LINE, "Preferred: <A or B>", UNKNOWN),
    (LINE, "Preferred: A\nPreferred: B", SEVERAL),
    (LINE, "Preferred: A\nPreferred: it depends", SEVERAL),
    (LINE, "<think>Preferred: A", CUT_OFF),
    (LINE, " \n", EMPTY),
    (WHOLE, "I prefer M", NO_VERDICT),
    (WHOLE, "mM", NO_VERDICT),
    (MARKER, "[A]", NO_VERDICT),
    (MARKER, "[[A]] or [[B]]", SEVERAL),
    (MARKER, "[[D]]", UNKNOWN),
]


@pytest.mark.parametrize(("form", "text", "outcome"), VERDICTS)
def test_verdicts_in_the_form_asked_for(form: VerdictForm, text: str, outcome: str) -> None:
    assert form.read({"content": text, "finish_reason": "stop"}) == Judgement(outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "text", "problem"), MALFORMED)
def test_anything_else_is_no_verdict(form: VerdictForm, text: str, problem: str) -> None:
    assert form.read({"content": text, "finish_reason": "stop"}) == Judgement(None, problem)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"content": "Preferred: A", "finish_reason": "length"}, CUT_OFF),
        ({"content": "Preferred: A", "finish_reason": "content_filter"}, REFUSED),
        ({"content": None, "refusal": "I cannot judge this"}, REFUSED),
        ({"content": None}, EMPTY),
        ({}, EMPTY),
    ],
)
def test_answers_that_are_none(answer: dict[str, Any], problem: str) -> None:
    assert LINE.read(answer) == Judgement(None, problem)


@given(st.text(max_size=40), st.sampled_from([LINE, WITH_TIE, WHOLE, MARKER]))
def test_no_text_breaks_the_reading(text: str, form: VerdictForm) -> None:
    judgement = form.read({"content": text})
    assert (judgement.outcome is None) == bool(judgement.problem)


def test_scores_of_both_orders() -> None:
    found = {
        (a, b): (score_of([Judgement(a), Judgement(b)]), are_consistent([Judgement(a), Judgement(b)]))
        for a in ("first", "tie", "second")
        for b in ("first", "tie", "second")
    }
    assert found == {  # type: ignore[comparison-overlap]
        ("first", "first"): (0.5, False),
        ("first", "tie"): (0.75, False),
        ("first", "second"): (1.0, True),
        ("tie", "first"): (0.25, False),
        ("tie", "tie"): (0.5, True),
        ("tie", "second"): (0.75, False),
        ("second", "first"): (0.0, True),
        ("second", "tie"): (0.25, False),
        ("second", "second"): (0.5, False),
    }
    broken = [Judgement("first"), Judgement(None, EMPTY)]
    assert score_of(broken) is None
    assert score_of(broken[::-1]) is None
    assert are_consistent(broken) is None


# ---- templates ----


@pytest.mark.parametrize("name", template_names())
def test_templates_of_the_library(name: str) -> None:
    template = load_template(name)
    messages = template.messages("WHAT IS ASKED", "ONE ANSWER", "OTHER ANSWER")
    text = "\n".join(message["content"] for message in messages)
    assert text.index("WHAT IS ASKED") < text.index("ONE ANSWER") < text.index("OTHER ANSWER")
    assert [message["role"] for message in messages] == (["system"] if template.system else []) + ["user"]
    assert "arXiv" in template.source
    # what the prompt asks for is what is read
    for written, outcome in template.form.choices.items():
        answer = {"line": f"Comparison: x\n{template.form.label}: {written}", "whole": written}.get(
            template.form.kind, f"x [[{written}]]"
        )
        assert template.form.read({"content": answer}).outcome == outcome
        assert written in text
    assert template.form.label in text
    assert template.form.kind != "marker" or all(f"[[{written}]]" in text for written in template.form.choices)


def test_every_published_form_is_there() -> None:
    assert {"hh_helpful", "hh_harmless", "tldr", "tldr_concise", "alpaca", "mt_bench"} == set(template_names())


def test_texts_are_not_run_as_templates() -> None:
    evil = "{{ 7 * 7 }} {% for x in range(10) %}x{% endfor %} {# gone #}"
    (message,) = load_template("tldr").messages(evil, evil, "b")
    assert message["content"].count(evil) == 2


def test_half_a_surrogate_pair_can_be_sent() -> None:
    (message,) = load_template("tldr").messages("a \ud800 b", "x", "y")
    message["content"].encode("utf-8")


OWN: dict[str, Any] = {
    "about": "which is funnier",
    "source": "my own",
    "user": "{{ prompt }}\nA: {{ answer_a }}\nB: {{ answer_b }}\nEnd with Funnier: A, B or tie.",
    "verdict": {"kind": "line", "label": "Funnier", "choices": {"first": "A", "second": "B", "tie": "tie"}},
}


def written(folder: Path, content: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    template = load_template(written(tmp_path, OWN))
    assert (template.name, template.about) == ("mine", "which is funnier")
    assert template.messages("P", "X", "Y")[0]["content"].startswith("P\nA: X\nB: Y")
    assert template.form.read({"content": "Funnier: tie"}).outcome == "tie"
    assert template.to_json()["sha256"] != load_template("tldr").to_json()["sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "{{ prompt }} {{ answer_a }}"}, "answer_b is used nowhere"),
        ({"user": OWN["user"] + "{{ reference }}"}, "unknown variable reference; known are prompt, answer_a, answer_b"),
        ({"user": OWN["user"] + "{% if %}"}, "not a jinja template"),
        ({"user": OWN["user"] + "{{ prompt.__class__.__mro__ }}"}, "cannot be filled .*unsafe"),
        ({"user": ["a"]}, "user must be a text"),
        ({"source": ""}, "source is missing"),
        ({"prompt": "x"}, "unknown prompt; known are about"),
        ({"answer_tokens": 0}, "answer_tokens must be a whole number"),
        ({"verdict": "A or B"}, r"verdict needs kind \(line, whole, marker\)"),
        ({"verdict": {**OWN["verdict"], "kind": "regex"}}, "verdict needs kind"),
        ({"verdict": {**OWN["verdict"], "label": ""}}, "a label is needed with kind: line"),
        ({"verdict": {**OWN["verdict"], "kind": "whole"}}, "a label is needed with kind: line, and only there"),
        ({"verdict": {**OWN["verdict"], "choices": {"first": "A"}}}, "choices must say what stands for first, second"),
        ({"verdict": {**OWN["verdict"], "choices": {"first": True, "second": False}}}, "quotes: YAML reads a bare no"),
        ({"verdict": {**OWN["verdict"], "choices": {"first": "A", "second": "A"}}}, "written alike"),
        ({"verdict": {**OWN["verdict"], "extra": 1}}, "unknown extra"),
    ],
)
def test_templates_that_cannot_be_meant(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_template(written(tmp_path, {**OWN, **change}))


def test_no_such_template(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'tlrd' is neither a file nor one of alpaca, .*tldr"):
        load_template("tlrd")
    with pytest.raises(ValueError, match="not readable as YAML"):
        load_template(written(tmp_path, "a: [b"))
    with pytest.raises(ValueError, match="must be a mapping"):
        load_template(written(tmp_path, "just text"))
