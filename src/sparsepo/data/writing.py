"""Rows → files, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DataError

WRITABLE = (".jsonl", ".jsonl.gz", ".parquet")


def check_output(path: Path, overwrite: bool = False, suffixes: tuple[str, ...] = WRITABLE) -> Path:
    """Make sure, before any work, that a file can be written.

    Raises:
        DataError: it exists and may not be overwritten, its folder does not exist, or its kind is unknown.
    """
    if not path.name.lower().endswith(suffixes):
        raise DataError(f"{path}: the name must end in {', '.join(suffixes)}.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file.")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; give --overwrite (overwrite=True) or another name.")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}.")
    return path


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | Path, overwrite: bool = False) -> None:
    """Write rows as JSON lines (.jsonl, .jsonl.gz) or Parquet, atomically: a broken run leaves no half file.

    Raises:
        DataError: see :func:`check_output`.
    """
    path = check_output(Path(path), overwrite)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            from .cells import table_from_rows

            pq.write_table(table_from_rows([dict(row) for row in rows], str(path)), temporary)
            return
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place if nothing fails, and otherwise disappears."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's files are private; this one replaces an ordinary one
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
