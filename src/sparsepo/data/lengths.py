"""Lengths of rows in tokens, as training will see them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import DataError
from .formats import is_messages
from .report import Problem
from .rules import SIDES


@dataclass(frozen=True)
class TokenizedRow:
    """Token ids of a row: the prompt up to where both whole sequences agree with it, and what follows on each side."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def tokenize_rows(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[TokenizedRow | Problem]:
    """Tokenise resolved rows in one call; a row that the chat template refuses gives a Problem.

    Plain responses get an end-of-sequence token, as in training; conversations go through the chat template.

    Raises:
        DataError: conversational rows and a tokenizer without a chat template.
    """
    rendered: list[tuple[str, str, str] | Problem] = [_rendered(row, tokenizer) for row in rows]
    texts = [text for entry in rendered if not isinstance(entry, Problem) for text in entry]
    is_chat = bool(rows) and is_messages(rows[0]["prompt"])
    ids = iter(tokenizer(texts, add_special_tokens=not is_chat)["input_ids"] if texts else [])
    result: list[TokenizedRow | Problem] = []
    for entry in rendered:
        result.append(entry if isinstance(entry, Problem) else _cut(next(ids), next(ids), next(ids)))
    return result


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading items two sequences share."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def _cut(prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenizedRow:
    at = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
    return TokenizedRow(prompt[:at], chosen[at:], rejected[at:])


def _rendered(row: Mapping[str, Any], tokenizer: Any) -> tuple[str, str, str] | Problem:
    if not is_messages(row["prompt"]):
        end = tokenizer.eos_token or ""
        ended = [row[side] if end and row[side].endswith(end) else row[side] + end for side in SIDES]
        return row["prompt"], row["prompt"] + ended[0], row["prompt"] + ended[1]
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            "The rows are conversational and the tokenizer has no chat template: set one, or give plain texts."
        )
    tools = row.get("tools")
    options = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    }
    try:
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True, **options)
        whole = [
            tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False, **options) for side in SIDES
        ]
    except Exception as error:  # a template may raise anything, usually about the order of roles
        return Problem("messages", "prompt", f"the chat template refuses the row: {error}")
    return prompt, whole[0], whole[1]
