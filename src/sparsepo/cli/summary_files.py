"""Files of summaries, prompts and references, as ``sparsepo summaries`` reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .base import CliError

TEXTS = ("summary", "text", "completion", "response")
REFERENCES = ("reference", "references")
REWARDS = ("reward", "score")
# Which summaries of a scored file are judged, by their place among a prompt's rewards
PICKS = ("all", "best", "second", "worst")
_SOURCE = re.compile(r"(?:(?P<name>[^=/\\]+)=)?(?P<path>.+)")


@dataclass
class PromptRows:
    """What a file says of one prompt.

    Args:
        prompt: a text or a conversation.
        document: the text to be faithful to.
        texts: its summaries, in order.
        rewards: their scores, where there are any.
        references: of the prompt.
        temperatures: of the summaries, where they are known.
    """

    prompt: Any
    document: str
    texts: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)


def read_prompts(path: str, limit: int | None = None) -> dict[str, PromptRows]:
    """Rows of a file by prompt, in order of appearance.

    A row has ``prompt`` (a text or messages) and may have ``document`` (unless given: the prompt, of messages the last one
    of the user), one summary (``summary``, ``text``, ``completion`` or ``response``), ``reward`` or ``score``,
    ``reference`` or ``references`` (a text or a list) and ``temperature``.

    Args:
        path: JSON, JSONL, CSV, TSV (each also .gz) or Parquet.
        limit: stop after so many prompts.

    Raises:
        CliError: no such file, no rows, or a row that cannot be used; names the line and the field.
    """
    from sparsepo.data.reading import read_rows

    file = Path(path).expanduser()
    if not file.is_file():
        raise CliError(f"There is no file {path}.")
    found: dict[str, PromptRows] = {}
    for number, row in read_rows(file):
        where = f"{path}, row {number}"
        prompt = row.get("prompt")
        key = prompt_key(prompt, where)
        if key not in found:
            if limit is not None and len(found) >= limit:
                continue
            found[key] = PromptRows(prompt, _document(row, prompt, where))
        _add(found[key], row, where)
    if not found:
        raise CliError(f"{path} holds no rows.")
    return found


def prompt_key(prompt: Any, where: str) -> str:
    """The prompt as one text, by which rows are put together.

    Raises:
        CliError: there is none, or it is neither a text nor messages.
    """
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(m, Mapping) and "content" in m for m in prompt):
        return "\n\n".join(f"{message.get('role', '')}: {message['content']}" for message in prompt)
    raise CliError(f"{where}: 'prompt' must be a text or a list of messages, found {prompt!r:.60}.")


def _document(row: Mapping[str, Any], prompt: Any, where: str) -> str:
    document = row.get("document")
    if document is None:
        if isinstance(prompt, str):
            return prompt
        return str(next((m["content"] for m in reversed(prompt) if m.get("role") == "user"), prompt[-1]["content"]))
    if not isinstance(document, str):
        raise CliError(f"{where}: 'document' must be a text, found {document!r:.60}.")
    return document


def _add(rows: PromptRows, row: Mapping[str, Any], where: str) -> None:
    name = next((name for name in TEXTS if row.get(name) is not None), None)
    if name is not None:
        if not isinstance(row[name], str):
            raise CliError(f"{where}: {name!r} must be a text, found {row[name]!r:.60}.")
        rows.texts.append(row[name])
        reward = _number(row, REWARDS, where)
        if reward is not None:
            rows.rewards.append(reward)
        temperature = _number(row, ("temperature",), where)
        if temperature is not None:
            rows.temperatures.append(temperature)
    for field_name in REFERENCES:
        value = row.get(field_name)
        for one in [] if value is None else value if isinstance(value, list) else [value]:
            if not isinstance(one, str) or not one.strip():
                raise CliError(f"{where}: {field_name!r} must be a text that is not empty, found {one!r:.60}.")
            if one not in rows.references:
                rows.references.append(one)


def _number(row: Mapping[str, Any], names: Sequence[str], where: str) -> float | None:
    for name in names:
        if row.get(name) is not None:
            try:
                value = float(row[name])
            except (TypeError, ValueError) as error:
                raise CliError(f"{where}: {name!r} must be a number, found {row[name]!r:.60}.") from error
            if not math.isfinite(value):
                raise CliError(f"{where}: {name!r} must be finite, found {value}.")
            return value
    return None


def picked(rows: PromptRows, pick: str) -> list[str]:
    """The summaries of a prompt that a file's ``@pick`` chooses; none where a prompt has too few.

    By reward, and among equal rewards by their order in the file.
    """
    if pick == "all":
        return rows.texts
    order = sorted(range(len(rows.texts)), key=lambda place: -rows.rewards[place])
    if pick == "second":
        return [rows.texts[order[1]]] if len(order) > 1 else []
    return [rows.texts[order[0 if pick == "best" else -1]]]


def references_of(prompts: Mapping[str, PromptRows], path: str) -> dict[str, tuple[str, ...]]:
    """References by prompt: the file's own column, else the summary with the highest reward.

    Raises:
        CliError: a prompt has neither.
    """
    found = {}
    for key, rows in prompts.items():
        if rows.references:
            found[key] = tuple(rows.references)
        elif rows.texts and len(rows.rewards) == len(rows.texts):
            best = picked(rows, "best")[0]
            if best.strip():
                found[key] = (best,)
        else:
            raise CliError(
                f"{path}: the prompt {key[:60]!r} has no reference and no scored summary; give a column 'reference', or "
                "'text' and 'reward' (the best-scored text becomes the reference)."
            )
    return found


def file_set(
    name: str, path: str, pick: str, references: Mapping[str, tuple[str, ...]] | None, limit: int | None
) -> list[Any]:
    """A file's summaries as sets, one a temperature (one in all where the rows name none).

    Args:
        name: of the sets.
        path: of the file.
        pick: of :data:`PICKS`.
        references: by prompt; None: those of the file's own column.
        limit: most prompts.

    Raises:
        CliError: no summaries, no rewards to pick by, or temperatures on some rows only.
    """
    from sparsepo.evaluation.summaries import SummaryItem, SummarySet

    prompts = read_prompts(path, limit)
    by_temperature: dict[float | None, list[SummaryItem]] = {}
    for key, rows in prompts.items():
        own = tuple(rows.references) if references is None else references.get(key, ())
        for temperature, texts in _by_temperature(rows, pick, path, key).items():
            if texts:
                item = SummaryItem(key, rows.document, tuple(texts), own)
                by_temperature.setdefault(temperature, []).append(item)
    if not by_temperature:
        too_few = "" if pick == "all" else f", or none has enough for @{pick}"
        raise CliError(f"{path}: no row has a summary ({', '.join(TEXTS)}){too_few}.")
    ordered = sorted(by_temperature.items(), key=lambda pair: (pair[0] is not None, pair[0] or 0.0))
    return [SummarySet(name, tuple(items), temperature) for temperature, items in ordered]


def _by_temperature(rows: PromptRows, pick: str, path: str, key: str) -> dict[float | None, list[str]]:
    """A prompt's summaries by their temperature, under None where none is named."""
    if pick != "all" and len(rows.rewards) != len(rows.texts):
        raise CliError(f"{path}@{pick}: the prompt {key[:60]!r} has summaries without a reward; leave @{pick} out.")
    if not rows.temperatures:
        return {None: picked(rows, pick)} if rows.texts else {}
    if len(rows.temperatures) != len(rows.texts) or pick != "all":
        raise CliError(f"{path}: some summaries of {key[:60]!r} have a temperature, others none, or @{pick} is given.")
    groups: dict[float | None, list[str]] = {}
    for text, one in zip(rows.texts, rows.temperatures, strict=True):
        groups.setdefault(one, []).append(text)
    return groups


def split_source(text: str) -> tuple[str, str, str]:
    """``NAME=PATH@pick`` → name, path, pick; name and pick may be left out, and only files have a pick.

    Raises:
        CliError: an unknown pick.
    """
    from sparsepo.data.reading import data_suffix

    match = _SOURCE.fullmatch(text)
    if match is None:
        raise CliError(f"{text!r} names no model and no file; write NAME=PATH or PATH.")
    name, path, pick = match["name"], match["path"], "all"
    before, at, after = path.rpartition("@")
    if at and data_suffix(Path(before)) is not None:
        path, pick = before, after
        if pick not in PICKS:
            raise CliError(f"{text}: @{pick} is unknown; choose from {', '.join('@' + known for known in PICKS)}.")
    return name or Path(path).name.split(".")[0] or path, path, pick
