"""What can be wrong with one preference row, without a tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from .cells import PROBLEM
from .formats import RowFormat
from .hh import hh_row_to_conversation, split_hh_row, why_not_split
from .report import Problem

SIDES = ("chosen", "rejected")
ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}

Row = dict[str, Any]


def resolve_row(row: Mapping[str, Any], form: RowFormat, hh_conversational: bool = False) -> tuple[Row, list[Problem]]:
    """The row with its prompt made explicit, and what is wrong with it.

    Transcripts are split at the last assistant turn; other implicit prompts are what chosen and rejected begin with in
    common, as TRL extracts them. A row whose fields are missing or of the wrong type comes back as it is.
    """
    problems = list(_type_problems(row, form))
    if problems:
        return dict(row), problems
    if form.kind == "hh_transcript":
        parts = hh_row_to_conversation(row) if hh_conversational else split_hh_row(row)
        if parts is None:
            return dict(row), [Problem("transcript", "chosen, rejected", str(why_not_split(row)))]
        resolved = {**row, **parts}
    elif form.implicit_prompt:
        if row["chosen"] == row["rejected"]:
            return dict(row), [Problem("identical", "chosen, rejected", "the same")]
        resolved = {**row, **_common_prompt(row["chosen"], row["rejected"])}
    else:
        resolved = dict(row)
    is_chat = form.conversational or (form.kind == "hh_transcript" and hh_conversational)
    problems = list(_chat_problems(resolved) if is_chat else _text_problems(resolved))
    if not problems and resolved["chosen"] == resolved["rejected"]:
        problems.append(Problem("identical", "chosen, rejected", "the same"))
    if not any(problem.code == "messages" for problem in problems):
        problems.extend(_weight_problems(resolved))
    return resolved, problems


def pair_key(row: Mapping[str, Any], swapped: bool = False) -> bytes:
    """Digest of a resolved row's texts; swapped: of the row with chosen and rejected exchanged."""
    sides = reversed(SIDES) if swapped else SIDES
    return _digest([_plain(row["prompt"]), *(_plain(row[side]) for side in sides)])


def prompt_digest(row: Mapping[str, Any]) -> bytes:
    """Digest of a resolved row's prompt."""
    return _digest(_plain(row["prompt"]))


def text_of(value: Any) -> str:
    """The text of a completion or message content: itself, its parts joined, or its messages' contents joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return "\n".join(text_of(v.get("content", v.get("text"))) for v in value if isinstance(v, Mapping))
    return ""


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).digest()


def _plain(value: Any) -> Any:
    """Messages as (role, text), so that keys that one file has and another lacks do not hide a repetition."""
    return (
        value
        if isinstance(value, str)
        else [(message.get("role"), text_of(message.get("content"))) for message in value]
    )


def _type_problems(row: Mapping[str, Any], form: RowFormat) -> Iterator[Problem]:
    if row.get(PROBLEM):
        field = str(row[PROBLEM]).split(" ", 1)[0]
        yield Problem("weights" if field.endswith("_weights") else "not_text", field, str(row[PROBLEM]))
        return
    for field in SIDES if form.implicit_prompt else ("prompt", *SIDES):
        value = row.get(field)
        if value is None:
            yield Problem("missing", field, "no value")
        elif form.conversational:
            if not isinstance(value, (list, tuple)) or not all(isinstance(message, Mapping) for message in value):
                yield Problem("not_text", field, f"{type(value).__name__}, not a list of messages")
            elif not value and field == "prompt":
                yield Problem("empty_prompt", field, "no messages")
            elif not value:
                yield Problem("empty_completion", field, "no messages")
        elif not isinstance(value, str):
            yield Problem("not_text", field, f"{type(value).__name__} ({str(value)[:40]}), not text")


def _text_problems(row: Row) -> Iterator[Problem]:
    if not row["prompt"].strip():
        yield Problem("empty_prompt", "prompt", "blank" if row["prompt"] else "empty")
    for side in SIDES:
        if not row[side].strip():
            yield Problem("empty_completion", side, "blank" if row[side] else "empty")


def _chat_problems(row: Row) -> Iterator[Problem]:
    if not row["prompt"]:
        yield Problem("empty_prompt", "prompt", "no messages before the answers")
    for field in ("prompt", *SIDES):
        for index, message in enumerate(row[field]):
            where = f"{field}[{index}]"
            role = message.get("role")
            if role not in ROLES:
                yield Problem("messages", f"{where}.role", f"{role!r} is none of {', '.join(sorted(ROLES))}")
                return
            is_blank = not text_of(message.get("content")).strip() and not message.get("tool_calls")
            if is_blank and field == "prompt":
                yield Problem("messages", f"{where}.content", "empty message")
                return
            if is_blank:
                yield Problem("empty_completion", f"{where}.content", "empty message")
                return
        if field != "prompt" and row[field] and row[field][0].get("role") != "assistant":
            role = row[field][0].get("role")
            yield Problem("messages", f"{field}[0].role", f"an answer must begin with 'assistant', not {role!r}")
            return
        if field != "prompt" and not row[field]:
            yield Problem("empty_completion", field, "no messages after the prompt")
            return


def _weight_problems(row: Row) -> Iterator[Problem]:
    for side in SIDES:
        field = f"{side}_weights"
        weights = row.get(field)
        if weights is None:
            if row.get(f"{_other(side)}_weights") is not None:
                yield Problem("weights", field, f"missing, but {_other(side)}_weights is given")
            continue
        detail = _bad_weights(weights, len(text_of(row[side])))
        if detail:
            yield Problem("weights", field, detail)


def _other(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


def _bad_weights(weights: Any, length: int) -> str | None:
    if not isinstance(weights, (list, tuple)):
        return f"{type(weights).__name__}, not a list of numbers or of spans [start, end, weight]"
    for index, entry in enumerate(weights):
        detail = _bad_span(entry, length) if isinstance(entry, (list, tuple)) else _bad_number(entry)
        if detail:
            return f"entry {index}: {detail}"
    return None


def _bad_number(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{value!r} is no number"
    if not math.isfinite(value):
        return f"{value} is not finite"
    return f"{value} is negative" if value < 0 else None


def _bad_span(span: Any, length: int) -> str | None:
    if len(span) != 3:
        return f"span {list(span)} has {len(span)} numbers instead of start, end, weight"
    start, end, weight = span
    for bound in (start, end):
        if _bad_number(bound) or int(bound) != bound:
            return f"span {list(span)}: {bound!r} is no character position"
    if start >= end:
        return f"span {list(span)}: start must be before end"
    if end > length:
        return f"span {list(span)} ends beyond the response's {length} characters"
    bad = _bad_number(weight)
    return f"span {list(span)}: weight {bad}" if bad else None


def _common_prompt(chosen: Any, rejected: Any) -> Row:
    """What both begin with, as TRL's ``extract_prompt`` has it; the two differ somewhere."""
    shorter = min(len(chosen), len(rejected))
    at = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if isinstance(chosen, str) and 0 < at < shorter and chosen[at - 1] == " ":
        at -= 1
    return {"prompt": chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}
