"""Answers of two systems to the same prompts, joined into comparisons."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ANSWER_FIELDS = ("response", "text", "completion", "answer", "output")
# both answers in one row: fields of the candidate and of the baseline
PAIR_FIELDS = (("response_a", "response_b"), ("answer_a", "answer_b"), ("chosen", "rejected"))
_NAMED = 5  # mismatched prompts that are named

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    Args:
        prompt: as text; messages of a chat one after the other, each behind its role.
        candidate, baseline: the two answers. A win is the candidate's.
        sample: which of the prompt's answers this is, from 0.
        messages: of a prompt that came as messages.
    """

    prompt: str
    candidate: str
    baseline: str
    sample: int = 0
    messages: list[dict[str, str]] | None = field(default=None, compare=False)

    @property
    def is_identical(self) -> bool:
        """Whether both answers are the same text but for white space at the ends: a tie that nobody need be asked."""
        return self.candidate.strip() == self.baseline.strip()

    @property
    def length_difference(self) -> int:
        """Characters of the candidate's answer minus those of the baseline's."""
        return len(self.candidate.strip()) - len(self.baseline.strip())


@dataclass
class Joined:
    """Comparisons, and what could not be compared.

    Args:
        comparisons: in the order of the candidate's rows.
        only_candidate, only_baseline: answers whose prompt (or whose n-th answer to it) the other side lacks: prompt → how
            many.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    only_candidate: dict[str, int] = field(default_factory=dict)
    only_baseline: dict[str, int] = field(default_factory=dict)

    @property
    def prompts(self) -> int:
        """Number of different prompts compared."""
        return len({own.prompt for own in self.comparisons})

    def complaints(self, names: Sequence[str]) -> list[str]:
        """A sentence for each side that has answers without a partner, naming the first few prompts."""
        found = []
        for name, only in zip(names, (self.only_candidate, self.only_baseline), strict=True):
            if only:
                listed = ", ".join(shortened(prompt) for prompt in list(only)[:_NAMED])
                more = f" and {len(only) - _NAMED} more" if len(only) > _NAMED else ""
                count = sum(only.values())
                found.append(
                    f"{count} of the answers of {name} have no partner and are left out; prompts: {listed}{more}"
                )
        return found

    def first(self, count: int) -> Joined:
        """The comparisons of the first so many prompts."""
        kept = set(list(dict.fromkeys(own.prompt for own in self.comparisons))[:count])
        return Joined([own for own in self.comparisons if own.prompt in kept], self.only_candidate, self.only_baseline)


def join_answers(candidate: Iterable[tuple[str, Row]], baseline: Iterable[tuple[str, Row]]) -> Joined:
    """Join two sets of rows by their prompts; the n-th answers to a prompt that stands several times meet each other.

    Args:
        candidate, baseline: rows with ``prompt`` and an answer (:data:`ANSWER_FIELDS`), each with where it stands.

    Raises:
        ValueError: a row lacks prompt or answer, or they are no texts; names the row. No prompt is on both sides.
    """
    messages: dict[str, list[dict[str, str]]] = {}
    sides = [_by_prompt(candidate, messages), _by_prompt(baseline, messages)]
    joined = Joined()
    for prompt, answers in sides[0].items():
        others = sides[1].get(prompt, [])
        joined.comparisons += [
            Comparison(prompt, own, other, sample, messages.get(prompt))
            for sample, (own, other) in enumerate(zip(answers, others, strict=False))
        ]
        if len(answers) > len(others):
            joined.only_candidate[prompt] = len(answers) - len(others)
    for prompt, others in sides[1].items():
        if len(others) > len(sides[0].get(prompt, [])):
            joined.only_baseline[prompt] = len(others) - len(sides[0].get(prompt, []))
    if not joined.comparisons:
        firsts = [shortened(next(iter(own), "")) for own in sides]
        raise ValueError(
            f"No prompt is in both files: there is nothing to compare. They begin with {firsts[0]} and {firsts[1]}; the "
            "prompts must be the same texts."
        )
    return joined


def comparisons_of(rows: Iterable[tuple[str, Row]]) -> Joined:
    """Comparisons of rows that hold both answers (:data:`PAIR_FIELDS`).

    Raises:
        ValueError: a row lacks a field, or it is no text; names the row. There are no rows.
    """
    joined, seen = Joined(), defaultdict(int)  # type: tuple[Joined, dict[str, int]]
    for where, row in rows:
        names = next((names for names in PAIR_FIELDS if all(name in row for name in names)), None)
        if names is None:
            accepted = " or ".join(f"{a} and {b}" for a, b in PAIR_FIELDS)
            raise ValueError(f"{where}: a file with both answers needs prompt, and {accepted}; found {_fields(row)}.")
        prompt = _prompt(where, row)
        own, other = (_answer(where, name, row[name]) for name in names)
        given = row["prompt"] if isinstance(row["prompt"], list) else None
        joined.comparisons.append(Comparison(prompt, own, other, seen[prompt], given))
        seen[prompt] += 1
    if not joined.comparisons:
        raise ValueError("The file holds no rows.")
    return joined


def has_both_answers(row: Row) -> bool:
    """Whether a row holds two answers."""
    return any(all(name in row for name in names) for names in PAIR_FIELDS)


def as_text(content: Any) -> str | None:
    """A prompt or answer as text: messages one after the other, each behind its role; None for anything else."""
    if isinstance(content, str):
        return _whole(content)
    if isinstance(content, list) and content and all(_is_message(own) for own in content):
        return _whole("\n\n".join(f"{own['role']}: {own['content']}" for own in content))
    return None


def shortened(text: str, length: int = 60) -> str:
    """A text in quotes on one line, cut."""
    text = " ".join(text.split())
    return json.dumps(text if len(text) <= length else text[:length] + "…", ensure_ascii=False)


def _by_prompt(rows: Iterable[tuple[str, Row]], messages: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """Answers by prompt; prompts that came as messages are entered in ``messages``."""
    found: dict[str, list[str]] = {}
    for where, row in rows:
        name = next((name for name in ANSWER_FIELDS if name in row), None)
        if name is None:
            hint = " (it holds both answers: give that file alone)" if has_both_answers(row) else ""
            raise ValueError(
                f"{where}: no answer; one of {', '.join(ANSWER_FIELDS)} is needed, found {_fields(row)}{hint}."
            )
        prompt = _prompt(where, row)
        if isinstance(row["prompt"], list):
            messages[prompt] = row["prompt"]
        found.setdefault(prompt, []).append(_answer(where, name, row[name]))
    return found


def _prompt(where: str, row: Row) -> str:
    if "prompt" not in row:
        raise ValueError(f"{where}: no prompt; found {_fields(row)}.")
    text = as_text(row["prompt"])
    if text is None:
        raise ValueError(f"{where}: prompt is neither a text nor messages (role, content): {row['prompt']!r:.80}.")
    return text


def _answer(where: str, name: str, content: Any) -> str:
    is_one = isinstance(content, list) and len(content) == 1 and _is_message(content[0])
    text = content[0]["content"] if is_one else content
    if not isinstance(text, str):
        raise ValueError(f"{where}: {name} is neither a text nor one message (role, content): {content!r:.80}.")
    return _whole(text)


def _whole(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON may hold and which can neither be sent nor written."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _fields(row: Row) -> str:
    return ", ".join(map(str, row)) or "an empty row"
