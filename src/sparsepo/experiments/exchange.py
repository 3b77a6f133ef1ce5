"""Results of runs as one file: tables can be made again from it, and further seeds added, without those runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsepo.data.errors import DataError
from sparsepo.data.reading import read_rows
from sparsepo.data.writing import check_output, write_rows

from .store import Store
from .tasks import Task

SUFFIXES = (".jsonl", ".jsonl.gz")
PARTS = ("ranking", "controls", "masks", "health", "policy", "log")  # what tables read, beside the task


def check_results_file(path: str) -> Path:
    """Where results can be written; a file of that name is replaced. Raises ``DataError``."""
    return check_output(Path(path), overwrite=True, suffixes=SUFFIXES)


def export_results(tasks: Sequence[Task], store: Store, path: Path) -> int:
    """Write the results that are there, one a line, each with the task it belongs to; returns their number."""
    found = {task.key: result for task in tasks if (result := store.result(task)) is not None}
    write_rows((found[key] for key in sorted(found)), path, overwrite=True)
    return len(found)


def import_results(path: str | Path, store: Store) -> int:
    """Put results that :func:`export_results` wrote into a store; what it has already stays. Returns how many were new.

    Raises:
        DataError: a line holds no result of a playground run.
    """
    new = 0
    for number, row in read_rows(Path(path)):
        missing = [name for name in ("task", *PARTS) if not isinstance(row.get(name), dict | list)]
        if missing:
            raise DataError(f"{path}, line {number}: no result of a run; {', '.join(missing)} is missing or no object.")
        content = row.pop("task")
        try:
            task = Task.from_json(content)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: its task is none of this version: {error}") from error
        if store.result(task) is None:
            store.save(task, row)
            new += 1
    return new
