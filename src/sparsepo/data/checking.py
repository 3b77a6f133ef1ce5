"""The check before training: what is wrong with preference rows, and what is done about it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from .cells import PROBLEM, table_from_rows
from .check_settings import CheckSettings
from .checker import Checker, preference_format
from .errors import DataError
from .hh import hh_row_to_conversation, split_hh_row
from .report import CheckError, CheckReport
from .rules import SIDES, Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROW_ID = "row_id"
_KEEP = "_sparsepo_keep"
_LONG = 5000  # rows from which a progress bar is worth its lines


def check_preferences(
    dataset: Dataset | IterableDataset | Sequence[Row],
    tokenizer: Any = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    eval_dataset: Any = None,
    settings: CheckSettings | None = None,
    name: str = "data",
) -> tuple[Any, CheckReport]:
    """Find what would break or distort training, drop such rows, and say so.

    Args:
        dataset: preference rows or whole transcripts (a ``Dataset``, an ``IterableDataset`` or a list of rows).
        tokenizer: for everything about lengths; conversational rows go through its chat template. None: not checked.
        max_length: tokens of prompt and response together that training keeps; None: no limit.
        max_prompt_length: prompts are cut to their last so many tokens before that.
        eval_dataset: rows to look for in the training data (or a dictionary of such sets).
        settings: thresholds and actions.
        name: what the report calls the data.

    Returns:
        The clean data set and the report. Transcripts come back split (prompt, chosen, rejected); a column ``row_id``
        (int64) numbers the original rows, unless there is one already. An ``IterableDataset`` comes back as one: rows
        are checked when they are read, and the report fills up on the way, counting each row in the first pass only.

    Raises:
        CheckError: no row left; more dropped than ``max_dropped``; any dropped under ``strict``.
        DataError: the columns are of no preference format, or ``row_id`` does not number the rows.
    """
    settings = settings or CheckSettings()
    if max_length is not None and max_prompt_length is not None and max_prompt_length >= max_length:
        raise DataError(
            f"max_prompt_length={max_prompt_length} leaves no room for responses in max_length={max_length}; "
            "lower it, or raise max_length."
        )
    form = preference_format(dataset, name)
    report = CheckReport(name, form.describe(), max_examples=settings.examples)
    checker = Checker(form, report, settings, tokenizer, max_length, max_prompt_length)
    if tokenizer is None and (max_length is not None or max_prompt_length is not None):
        report.notes.append("lengths were not checked: that needs a tokenizer")
    if eval_dataset is not None:
        for held_out in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
            if _is_streamed(held_out):
                report.notes.append("overlap with the eval data was not checked: the eval data are streamed")
            else:
                checker.remember_eval(held_out)
    if _is_streamed(dataset):
        return _checked_stream(dataset, checker), report
    return _checked_whole(dataset, checker), report


def _checked_whole(dataset: Any, checker: Checker) -> Dataset:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        dataset = Dataset(table_from_rows(list(dataset), checker.report.name))
    numbers = _row_ids(dataset)
    kept: list[int] = []
    size = checker.settings.batch_size
    with _progress(checker, len(dataset)) as advance:
        for start in range(0, len(dataset), size):
            columns = dataset[start : start + size]
            length = min(size, len(dataset) - start)
            rows = [{name: values[i] for name, values in columns.items()} for i in range(length)]
            # Positions, not given ids, are what a person finds in the file.
            stays = checker.keep(rows, range(start, start + length))
            kept.extend(start + i for i, stay in enumerate(stays) if stay)
            advance(length)
    _judge(checker)
    clean = dataset.remove_columns([column for column in (ROW_ID, PROBLEM) if column in dataset.column_names])
    clean = clean.add_column(ROW_ID, _int64(numbers)).select(kept)
    if checker.form.kind == "hh_transcript":
        clean = _split_all(clean, checker.settings.hh_conversational)
    return clean


def _split_all(dataset: Dataset, conversational: bool) -> Dataset:
    from datasets import Dataset

    split = hh_row_to_conversation if conversational else split_hh_row
    parts = [dict(split(row) or {}) for row in dataset]
    others = [name for name in dataset.column_names if name not in ("prompt", *SIDES)]
    columns = {name: [part[name] for part in parts] for name in ("prompt", *SIDES)}
    return Dataset.from_dict({**columns, **{name: dataset[name][:] for name in others}})


def _judge(checker: Checker) -> None:
    judge(checker.report, checker.settings)


def judge(report: CheckReport, settings: CheckSettings) -> None:
    """Raise ``CheckError`` if the findings are too many, or any under strict. Of a stream: once it has been read."""
    first = report.first_dropped()
    if first is None:
        return
    finding, example = first
    where = f"row {example['row']}, {example['field']}: {finding.what} ({example['detail']})"
    if settings.strict:
        raise CheckError(
            f"{report.name}: {where}; {report.dropped} of {report.rows} rows would be dropped, and strict stops there.",
            report,
        )
    if report.kept == 0:
        raise CheckError(f"{report.name}: no row is left of {report.rows}; the first: {where}.", report)
    if report.dropped > settings.max_dropped * report.rows:
        raise CheckError(
            f"{report.name}: {report.dropped} of {report.rows} rows dropped, more than max_dropped="
            f"{settings.max_dropped:g} allows; the first: {where}. Mend the data, or raise max_dropped.",
            report,
        )


def _checked_stream(dataset: IterableDataset, checker: Checker) -> IterableDataset:
    """The stream without the rows that the rules drop."""
    checker.report.notes.append("streamed: rows are counted as they are read")
    marked = dataset.map(partial(_marked, checker=checker), with_indices=True)
    return marked.filter(_is_kept).remove_columns([_KEEP, PROBLEM])


def _marked(row: Row, index: int, checker: Checker) -> Row:
    """The row with its number, split if it is a transcript, and whether it stays."""
    stays = checker.keep([row], [index])[0]
    if not stays and checker.settings.strict:
        _judge(checker)
    added: Row = {_KEEP: stays, PROBLEM: None, ROW_ID: row.get(ROW_ID, index)}
    if checker.form.kind == "hh_transcript":
        convert = hh_row_to_conversation if checker.settings.hh_conversational else split_hh_row
        added |= (convert(row) if stays else None) or {"prompt": None}
    return {**row, **added}


def _is_kept(row: Row) -> bool:
    return bool(row[_KEEP])


def _row_ids(dataset: Dataset) -> list[int]:
    """Identities of the rows: given ones if they are different integers, else their numbers."""
    if ROW_ID not in dataset.column_names:
        return list(range(len(dataset)))
    given = dataset[ROW_ID][:]
    seen: set[int] = set()
    for index, value in enumerate(given):
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(f"row {index}, {ROW_ID}: {value!r} is no integer; rename or remove the column.")
        if value in seen:
            raise DataError(f"row {index}, {ROW_ID}: {value} is used twice; rename or remove the column.")
        seen.add(value)
    return list(given)


def _is_streamed(dataset: Any) -> bool:
    from datasets import IterableDataset

    return isinstance(dataset, IterableDataset)


def _int64(values: list[int]) -> Any:
    import numpy as np

    return np.asarray(values, dtype=np.int64)


def _progress(checker: Checker, rows: int) -> Any:
    """A context that gives a function to call with the number of rows done."""
    shown = checker.settings.progress
    if shown is None:
        shown = rows >= _LONG and sys.stderr.isatty()
    if not shown:
        return nullcontext(lambda count: None)
    return _Bar(rows, f"Checking {checker.report.name}")


class _Bar:
    def __init__(self, rows: int, title: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=console.is_terminal)
        self.rows, self.title = rows, title

    def __enter__(self) -> Any:
        self.progress.start()
        task = self.progress.add_task(self.title, total=self.rows)
        return lambda count: self.progress.advance(task, count)

    def __exit__(self, *exception: Any) -> None:
        self.progress.stop()
