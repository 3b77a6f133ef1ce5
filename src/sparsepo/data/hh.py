r"""Whole dialogue transcripts as in Anthropic's HH: ``"\n\nHuman: …\n\nAssistant: …"``.

A row holds two transcripts that should differ in the last answer only. They are split at the LAST assistant turn, never
at the longest common prefix: in about a fifth of HH rows both answers begin with the same words, which that rule would
move into the prompt. Everything here is a pure function of one row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_BEGINS = re.compile(r"\s*(?:Human|Assistant):")

Message = dict[str, str]


def is_hh_text(text: Any) -> bool:
    """Whether a value is a transcript: it begins with a turn of one of the two roles and holds an assistant turn."""
    return isinstance(text, str) and bool(_BEGINS.match(text)) and _last_turn(text) is not None


def is_hh_transcript(row: Mapping[str, Any]) -> bool:
    """Whether ``chosen`` and ``rejected`` of a row are whole transcripts, so that the row must be split.

    A row with a prompt of its own is not one, whatever its completions look like.
    """
    return not row.get("prompt") and is_hh_text(row.get("chosen")) and is_hh_text(row.get("rejected"))


def split_hh_text(text: str) -> tuple[str, str] | None:
    r"""Split a transcript behind its last ``"\n\nAssistant:"``.

    Returns:
        (prompt, completion): the prompt ends with "Assistant:", the completion begins with the space that follows it;
        together they are ``text``, unchanged. None where there is no assistant turn, or a human turn comes after it.
    """
    turn = _last_turn(text)
    if turn is None or turn.group(1) != "Assistant":
        return None
    return text[: turn.end()], text[turn.end() :]


def split_hh_row(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Split both transcripts of a row at their last assistant turn; the texts stay as they are.

    Returns:
        ``{"prompt", "chosen", "rejected"}``, or None where the row cannot be split (:func:`why_not_split` says why).
    """
    if why_not_split(row) is not None:
        return None
    prompt, chosen = split_hh_text(row["chosen"])  # type: ignore[misc]
    return {"prompt": prompt, "chosen": chosen, "rejected": row["rejected"][len(prompt) :]}


def why_not_split(row: Mapping[str, Any]) -> str | None:
    """What keeps a transcript row from being split, naming the field; None if nothing does."""
    prompts = []
    for field in ("chosen", "rejected"):
        if not isinstance(row.get(field), str):
            return f"{field!r} is {type(row.get(field)).__name__}, not a text"
        parts = split_hh_text(row[field])
        if parts is None:
            return f"{field!r} does not end with an 'Assistant:' turn"
        prompts.append(parts[0])
    if prompts[0] != prompts[1]:
        at = next((i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b), min(map(len, prompts)))
        return f"the prompts of 'chosen' and 'rejected' differ from character {at} on"
    return None


def hh_to_messages(text: str) -> list[Message]:
    """The turns of a transcript as chat messages.

    Human turns get the role ``user``, assistant turns ``assistant``, text before the first turn ``system``. Contents
    are stripped; consecutive turns of one role are joined by a blank line, because chat templates want roles to
    alternate. An empty last turn is kept (an empty answer, or a prompt that waits for one), others are left out.
    """
    turns = list(_TURN.finditer(text))
    head = text[: turns[0].start()] if turns else text
    messages = [{"role": "system", "content": head.strip()}] if head.strip() else []
    for index, turn in enumerate(turns):
        is_last = index + 1 == len(turns)
        content = text[turn.end() : len(text) if is_last else turns[index + 1].start()].strip()
        role = ROLES[turn.group(1)]
        if not content and not is_last:
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    return messages


def hh_row_to_conversation(row: Mapping[str, Any]) -> dict[str, list[Message]] | None:
    """A transcript row as TRL's conversational preference row: roles recovered turn by turn.

    Returns:
        ``prompt`` (all turns before the last answer), ``chosen`` and ``rejected`` (one assistant message each), or None
        where the row cannot be split.
    """
    parts = split_hh_row(row)
    if parts is None:
        return None
    head = parts["prompt"]
    before = list(_TURN.finditer(head))[-1].start()
    converted = {"prompt": hh_to_messages(head[:before])}
    for field in ("chosen", "rejected"):
        converted[field] = [{"role": "assistant", "content": parts[field].strip()}]
    return converted


def _last_turn(text: str) -> re.Match[str] | None:
    """The last turn's marker; None for a text that holds no assistant turn."""
    turns = list(_TURN.finditer(text))
    return turns[-1] if any(turn.group(1) == "Assistant" for turn in turns) else None
