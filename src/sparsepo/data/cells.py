"""Rows of mixed types → columns of one type, so that Arrow can hold them and no broken value stops the load.

A value of the wrong type (a number where other rows hold text) becomes None, and the row's ``load_problem`` column says
what was there; the check before training reports and drops such rows. The column exists only where it is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import DataError
from .formats import TEXT_NAMES

PROBLEM = "load_problem"
TEXT_FIELDS = {"prompt", "chosen", "rejected", "history", "post", "human_ref_A", "human_ref_B", *TEXT_NAMES}
NUMBER_FIELDS = {"reward", "score", "score_A", "score_B", "score_ratio", "labels", "chosen_reward", "rejected_reward"}
WEIGHT_FIELDS = {"chosen_weights", "rejected_weights"}

_WORDS = {"text": "text", "messages": "a list of messages", "number": "a number", "bool": "true/false"}
_WORDS |= {"numbers": "a list of numbers", "spans": "a list of spans", "object": "an object", "list": "a list"}
_ACCEPTED = {"text": ("text", "messages"), "number": ("number", "bool"), "weights": ("numbers", "spans")}


def kind_of(value: Any) -> str | None:
    """Kind of one value; None for None and for the empty list, which fit everywhere."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return None
    if isinstance(value, (list, tuple)):
        if all(isinstance(v, Mapping) for v in value):
            return "messages"
        if all(_is_number(v) or v is None for v in value):
            return "numbers"
        is_spans = all(isinstance(v, (list, tuple)) and all(_is_number(x) for x in v) for v in value)
        return "spans" if is_spans else "list"
    if isinstance(value, bool):
        return "bool"
    if _is_number(value):
        return "number"
    return "text" if isinstance(value, str) else "object"


class Cells:
    """What kind each column holds, learnt from rows; brings every row in line with it."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        counts: dict[str, Counter[str]] = {}
        for row in rows:
            for column, value in row.items():
                kind = kind_of(value)
                counter = counts.setdefault(column, Counter())
                if kind:
                    counter[kind] += 1
        self.columns = [column for column in counts if column != PROBLEM]
        self._kinds = {column: _choose(column, counts[column]) for column in self.columns}

    def tidy(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with wrong values set to None and named under ``load_problem`` (which is absent if there are none)."""
        clean: dict[str, Any] = {}
        problems = []
        for column in self.columns:
            value, problem = self._value(column, row.get(column))
            if problem is None and not _is_unicode(value):
                value, problem = None, f"{column} holds half a character (a lone surrogate)"
            clean[column] = value
            if problem:
                problems.append(problem)
        if problems:
            clean[PROBLEM] = "; ".join(problems)
        return clean

    def _value(self, column: str, value: Any) -> tuple[Any, str | None]:
        expected, found = self._kinds.get(column), kind_of(value)
        if found is None:
            return (None if value is None or expected in ("text", "number") else list(value)), None
        if column not in TEXT_FIELDS | NUMBER_FIELDS | WEIGHT_FIELDS:
            return (value if expected != "mixed" else json.dumps(value, ensure_ascii=False, default=str)), None
        if column in NUMBER_FIELDS and found == "text":
            return _parsed(column, value)
        if column in NUMBER_FIELDS and found == "bool":
            return float(value), None
        if found != expected:
            wanted = _WORDS.get(expected or "", "")
            return None, f"{column} is {_WORDS[found]} ({_short(value)}), not {wanted}"
        if column in NUMBER_FIELDS:
            return _parsed(column, value)
        if found == "messages":
            problem = _message_problem(column, value)
            return (None, problem) if problem else (value, None)
        return value, None


def table_from_rows(rows: list[dict[str, Any]], source: str) -> Any:
    """An Arrow table of all rows, tidied.

    Raises:
        DataError: Arrow cannot hold a column that training reads; names it.
    """
    import pyarrow as pa

    cells = Cells(rows)
    strange = next((name for name in cells.columns if not _is_unicode(name) or "\0" in name), None)
    if strange is not None:
        raise DataError(f"{source}: a field has the name {strange!r}, which no column can have; rename it.")
    tidied = [cells.tidy(row) for row in rows]
    names = cells.columns + ([PROBLEM] if any(PROBLEM in row for row in tidied) else [])
    arrays = {}
    for name in names:
        values = [row.get(name) for row in tidied]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            if name in TEXT_FIELDS | NUMBER_FIELDS | WEIGHT_FIELDS:
                raise DataError(f"{source}: column {name!r} mixes types that no table can hold ({error}).") from error
            arrays[name] = pa.array([None if v is None else json.dumps(v, default=str) for v in values])
    return pa.table(arrays)


def _choose(column: str, counter: Counter[str]) -> str | None:
    """The kind that a column holds: the commonest one accepted there; ``mixed`` for other columns of several kinds."""
    if column in NUMBER_FIELDS:
        return "number"
    if column in TEXT_FIELDS or column in WEIGHT_FIELDS:
        accepted = _ACCEPTED["text" if column in TEXT_FIELDS else "weights"]
        return max(accepted, key=lambda kind: counter[kind])
    return "mixed" if len(counter) > 1 else next(iter(counter), None)


def _parsed(column: str, value: Any) -> tuple[float | None, str | None]:
    try:
        return float(value), None
    except OverflowError:
        return None, f"{column} is a number too large to be one"
    except ValueError:
        return None, f"{column} is text ({_short(value)}), not a number" if value.strip() else None


def _is_unicode(value: Any) -> bool:
    """Whether all texts in a value can be written."""
    if isinstance(value, str):
        if value.isascii():
            return True
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    return not isinstance(value, (list, tuple)) or all(map(_is_unicode, value))


def _message_problem(column: str, messages: Any) -> str | None:
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            value = message.get(key)
            is_parts = key == "content" and isinstance(value, list)
            if value is not None and not isinstance(value, str) and not is_parts:
                return f"{column}[{index}].{key} is {_WORDS[kind_of(value) or 'object']} ({_short(value)}), not text"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
