"""Prompts to sample from: of a text file, or of rows of any accepted format."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DataError
from .formats import HISTORY_NAMES, PREFERENCE_KINDS, detect_format, first_of, is_messages
from .loading import PEEK, Source, load_rows
from .pairs import prompt_key
from .rules import resolve_row

Prompt = str | list[dict[str, str]]
_TEXTS = (".txt", ".txt.gz")


def load_prompts(
    source: Source,
    split: str | None = None,
    name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
) -> tuple[list[Prompt], Counter[str]]:
    """Prompts, each once, in the order of the rows.

    Args:
        source: a text file (``.txt``, a prompt a line), or what :func:`sparsepo.data.load_preference_data` takes: pairs,
            transcripts, scored completions, votes, or rows with a ``prompt`` alone.
        split, name, columns, data_dir: as there.
        limit: at most so many.

    Returns:
        The prompts (texts, or conversations), and counts of what was left out, by reason.

    Raises:
        DataError: no such source, no column of prompts, or no prompt in it.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit} must be at least 1.")
    counts: Counter[str] = Counter()
    found: dict[str, Prompt] = {}
    rows = _lines(source) if _is_text(source) else _rows(source, split, name, columns, data_dir, counts)
    for prompt in rows:
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            counts["empty prompts"] += 1
            continue
        key = prompt_key(prompt)
        if key in found:
            counts["repeated prompts"] += 1
            continue
        if limit is not None and len(found) == limit:
            break
        found[key] = prompt
    if not found:
        raise DataError(
            f"{source} holds no prompts ({', '.join(f'{n} {what}' for what, n in counts.items()) or 'empty'})."
        )
    return list(found.values()), counts


def _is_text(source: Source) -> bool:
    return isinstance(source, (str, Path)) and str(source).lower().endswith(_TEXTS)


def _lines(source: Any) -> Iterator[str]:
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"No file {path}.")
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\r\n")


def _rows(
    source: Source,
    split: str | None,
    name: str | None,
    columns: Mapping[str, str] | None,
    data_dir: str | None,
    counts: Counter[str],
) -> Iterator[Prompt]:
    dataset, text = load_rows(source, split, name=name, columns=columns, data_dir=data_dir)
    form = None
    try:
        form = detect_format([dataset[place] for place in range(min(PEEK, len(dataset)))], text)
    except DataError:
        if first_of(HISTORY_NAMES, dataset.column_names) is None:
            raise DataError(
                f"{text} has the columns {', '.join(map(repr, dataset.column_names))} and no prompt; rename one "
                "(--rename question=prompt)."
            ) from None
    column = first_of(("prompt", *HISTORY_NAMES), dataset.column_names)
    for row in dataset:
        if form is not None and form.kind in PREFERENCE_KINDS:
            resolved, problems = resolve_row(row, form)
            prompt = resolved.get("prompt")
            if any(problem.code in ("transcript", "missing", "not_text") for problem in problems):
                counts[f"rows without a prompt ({problems[0].code})"] += 1
                continue
        else:
            prompt = row[column]
        if isinstance(prompt, str) or is_messages(prompt):
            yield prompt  # type: ignore[misc]
        else:
            counts["rows whose prompt is no text"] += 1
