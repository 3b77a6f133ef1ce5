"""Files of answers → comparisons, for ``sparsepo judge``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import CliError

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_comparisons(candidate: str, baseline: str | None) -> tuple[Any, list[str]]:
    """Comparisons of two files of answers, or of one with both.

    Returns:
        What is joined (:class:`sparsepo.evaluation.judge.Joined`), and remarks on rows left out.

    Raises:
        CliError: a file is missing, or the first of two holds pairs.
        ValueError: a row cannot be read, or no prompt is in both.
    """
    from sparsepo.evaluation.judge import comparisons_of, join_answers

    if baseline is not None:
        return join_answers(_rows(candidate), _rows(baseline)), []
    remarks: list[str] = []
    return comparisons_of(_with_prompts(_rows(candidate), remarks)), remarks


def _rows(source: str) -> Rows:
    from sparsepo.data.reading import READABLE, data_suffix, read_rows

    path = Path(source).expanduser()
    if path.is_dir():
        raise CliError(f"{source} is a folder; give a file of answers ({READABLE}).")
    if not path.is_file():
        raise CliError(f"{source}: there is no such file.")
    if data_suffix(path) is None:
        raise CliError(f"{source}: the name ends in no known way; give {READABLE}.")
    found = ((f"{source}, row {number}", row) for number, row in read_rows(path))
    first = next(found, None)
    if first is None:
        raise CliError(f"{source} holds no rows.")
    return itertools.chain([first], found)


def _with_prompts(rows: Rows, remarks: list[str]) -> Rows:
    """Whole transcripts (HH) split behind the last turn; those that cannot be are left out and named."""
    from sparsepo.data.hh import is_hh_transcript, split_hh_row, why_not_split

    left: list[str] = []
    for where, row in rows:
        if not is_hh_transcript(row):
            yield where, row
        elif (split := split_hh_row(row)) is not None:
            yield where, split
        else:
            left.append(f"{where} ({why_not_split(row)})")
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        remarks.append(f"{len(left)} transcripts cannot be split and are left out: {'; '.join(left[:3])}{more}")


def names_of(given: list[str] | None, candidate: str, baseline: str | None) -> list[str]:
    """What the two sides are called: as asked for, else by their files."""
    if given is not None:
        if given[0] == given[1]:
            raise CliError(f"--names {given[0]} {given[1]}: the two names must differ.")
        return given
    if baseline is None:
        return ["first", "second"]
    stems = [Path(path).name.split(".")[0] for path in (candidate, baseline)]
    if stems[0] == stems[1]:  # out_a/samples.jsonl and out_b/samples.jsonl
        stems = [Path(path).expanduser().resolve().parent.name for path in (candidate, baseline)]
    return stems if stems[0] != stems[1] else ["first", "second"]
