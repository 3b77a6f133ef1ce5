"""Which of the accepted row formats a data set has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import DataError
from .hh import is_hh_transcript

Kind = Literal["preference", "hh_transcript", "scored", "votes"]
PREFERENCE_KINDS: tuple[Kind, ...] = ("preference", "hh_transcript")
PAIRABLE_KINDS: tuple[Kind, ...] = ("scored", "votes")

# First name that is present wins.
TEXT_NAMES = ("text", "completion", "response")
REWARD_NAMES = ("reward", "score")
HISTORY_NAMES = ("history", "post", "prompt")

ACCEPTED = """accepted are
  preference pairs     prompt, chosen, rejected (texts, or lists of messages); prompt may be left out
  dialogue transcripts chosen, rejected, each "\\n\\nHuman: ... \\n\\nAssistant: ..." (Anthropic HH)
  scored completions   prompt, text, reward (text also as completion or response, reward also as score)
  votes                history (or post), human_ref_A, human_ref_B, and labels or score_A with score_B (SHP)"""


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a data set are.

    Args:
        kind: ``preference``, ``hh_transcript``, ``scored`` or ``votes``.
        conversational: the texts are lists of messages with role and content.
        implicit_prompt: no prompt column; the prompt is what chosen and rejected have in common.
        columns: names of all columns.
    """

    kind: Kind
    conversational: bool
    implicit_prompt: bool
    columns: tuple[str, ...]

    def describe(self) -> str:
        """One line for a person."""
        texts = "conversational" if self.conversational else "plain text"
        if self.kind == "hh_transcript":
            return "dialogue transcripts, split at the last assistant turn"
        if self.kind == "preference":
            return f"preference pairs, {texts}" + (", implicit prompt" if self.implicit_prompt else "")
        return f"scored completions, {texts}" if self.kind == "scored" else "votes between two answers"


def is_messages(value: Any) -> bool:
    """Whether a value is a non-empty list of chat messages."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def first_of(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The first name among the columns."""
    present = set(columns)
    return next((name for name in names if name in present), None)


def detect_format(rows: Sequence[Mapping[str, Any]], source: str = "the data") -> RowFormat:
    """Tell the format from some rows (the first hundred or so; some of them may be broken).

    Raises:
        DataError: no rows, or columns of no known format: names those found and those accepted.
    """
    if not rows:
        raise DataError(f"{source} holds no rows.")
    columns = tuple(dict.fromkeys(column for row in rows for column in row if column != "load_problem"))
    has = set(columns)
    if {"chosen", "rejected"} <= has:
        return _preference(rows, columns)
    if "prompt" in has and first_of(TEXT_NAMES, has) and first_of(REWARD_NAMES, has):
        return RowFormat("scored", _most(rows, lambda row: is_messages(row.get("prompt"))), False, columns)
    is_judged = "labels" in has or {"score_A", "score_B"} <= has
    if {"human_ref_A", "human_ref_B"} <= has and first_of(HISTORY_NAMES, has) and is_judged:
        return RowFormat("votes", False, False, columns)
    raise DataError(
        f"{source} has the columns {', '.join(map(repr, columns)) or 'none'}; {ACCEPTED}\n"
        "Rename columns on loading (columns={'question': 'prompt'}, or --rename question=prompt)."
    )


def _preference(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> RowFormat:
    conversational = _most(rows, lambda row: is_messages(row.get("chosen")) or is_messages(row.get("rejected")))
    # Some sets repeat the prompt as a text beside chosen and rejected conversations that already hold it.
    repeats = conversational and not _most(rows, lambda row: is_messages(row.get("prompt")))
    if "prompt" not in columns or repeats:
        if not conversational and _most(rows, is_hh_transcript):
            return RowFormat("hh_transcript", False, True, columns)
        return RowFormat("preference", conversational, True, columns)
    return RowFormat("preference", conversational, False, columns)


def _most(rows: Sequence[Mapping[str, Any]], test: Any) -> bool:
    """Whether most rows pass, so that a broken row does not decide the format."""
    return sum(bool(test(row)) for row in rows) * 2 > len(rows)
