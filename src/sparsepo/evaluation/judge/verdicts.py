"""What a judge said → which answer it prefers. Strict: what does not follow the form is counted, and never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

FIRST: Final = "first"
SECOND: Final = "second"
TIE: Final = "tie"
Outcome = Literal["first", "second", "tie"]

# why an answer gives no verdict
EMPTY, REFUSED, CUT_OFF = "empty answer", "refused to answer", "cut off"
NO_VERDICT, UNKNOWN, SEVERAL = "no verdict in the form asked for", "verdict is none of the choices", "several verdicts"
UNANSWERED = "no answer from the server"  # after all retries; asked again by the next run

_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_OPEN_THINKING = re.compile(r"\A\s*<think(?:ing)?>")
_DECORATION = "*_`#> \t"
_MARKER = re.compile(r"\[\[([^\[\]\n]{1,20})\]\]")


@dataclass(frozen=True)
class Judgement:
    """One answer of a judge, read.

    Args:
        outcome: the answer shown first or second is better, or a tie; None: malformed.
        problem: why there is no outcome; "" where there is one.
    """

    outcome: Outcome | None
    problem: str = ""


@dataclass(frozen=True)
class VerdictForm:
    """How a template asks for the verdict.

    Args:
        kind: ``line``: a line ``label: choice``; ``whole``: the answer is the choice and nothing else; ``marker``: the
            choice in double square brackets, anywhere.
        choices: what is written → what it means. Upper and lower case differ.
        label: of the line.
    """

    kind: Literal["line", "whole", "marker"]
    choices: Mapping[str, Outcome]
    label: str = ""

    def read(self, answer: Mapping[str, Any]) -> Judgement:
        """The verdict of an answer.

        Args:
            answer: ``content``, and where the server says so ``refusal`` and ``finish_reason``.
        """
        content = answer.get("content")
        if answer.get("refusal") or answer.get("finish_reason") == "content_filter":
            return Judgement(None, REFUSED)
        if answer.get("finish_reason") == "length":  # its last line may lack its end
            return Judgement(None, CUT_OFF)
        if not isinstance(content, str) or not content.strip():
            return Judgement(None, EMPTY)
        text = _THINKING.sub("", content, count=1)
        if _OPEN_THINKING.match(text):
            return Judgement(None, CUT_OFF)
        return self._judge(self._found(text))

    def _found(self, text: str) -> list[str]:
        """All places where a verdict stands, as it is written there."""
        if self.kind == "whole":
            return [_bare(text)]
        if self.kind == "marker":
            return [found.strip() for found in _MARKER.findall(text)]
        label = re.compile(rf"{re.escape(self.label)}[*_`]*\s*[:：](.*)", re.IGNORECASE)
        lines = (label.fullmatch(line.strip().lstrip(_DECORATION).rstrip()) for line in text.splitlines())
        return [_bare(line.group(1)) for line in lines if line is not None]

    def _judge(self, found: Sequence[str]) -> Judgement:
        if not found:
            return Judgement(None, NO_VERDICT)
        outcomes = {self.choices.get(own) for own in found}
        if len(outcomes) > 1:
            return Judgement(None, SEVERAL)
        outcome = outcomes.pop()
        unknown = NO_VERDICT if self.kind == "whole" else UNKNOWN
        return Judgement(outcome) if outcome is not None else Judgement(None, unknown)


def _bare(text: str) -> str:
    """A choice without quotes, brackets, emphasis and a full stop around it."""
    text = text.strip().strip("*_`").strip()
    text = text.removesuffix(".").strip().strip("*_`").strip()
    for opening, closing in ('""', "''", "“”", "‘’", "()", "[]", "[]", "<>"):
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            text = text[1:-1].strip()
    return text


def score_of(judgements: Sequence[Judgement]) -> float | None:
    """The candidate's score of a comparison that was asked in both orders: 1 a win, ½ a tie, 0 a loss, each order one half.

    Args:
        judgements: with the candidate shown first; with the baseline shown first.

    Returns:
        None where either order has no verdict: one order alone would carry the judge's liking for a place.
    """
    values = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}
    first, second = judgements
    if first.outcome is None or second.outcome is None:
        return None
    return (values[first.outcome] + 1.0 - values[second.outcome]) / 2


def are_consistent(judgements: Sequence[Judgement]) -> bool | None:
    """Whether both orders name the same answer, or both a tie; None where either has no verdict."""
    other = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
    first, second = judgements
    if first.outcome is None or second.outcome is None:
        return None
    return first.outcome == other[second.outcome]
