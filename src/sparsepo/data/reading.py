"""Rows of local files, one at a time, with errors that name the file and the line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from .errors import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
READABLE = "JSON, JSONL, CSV, TSV (each also .gz) or Parquet"

# Bounds, so that a hostile or broken file costs a message and not the machine
LONGEST_LINE = 64 << 20  # characters
LARGEST_JSON = 4 << 30
MOST_SWOLLEN, LEAST_UNPACKED = 100, 64 << 20

Row = dict[str, Any]


def data_suffix(path: Path) -> str | None:
    """The suffix that tells how to read a file (without .gz), or None for a file of no known kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_packed = bool(suffixes) and suffixes[-1] == ".gz"
    if is_packed:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else None
    return suffix if suffix in SUFFIXES and not (is_packed and suffix == ".parquet") else None


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of one file, each with where it stands: line number (JSONL, CSV) or number of the entry, from 1.

    Raises:
        DataError: the file or a row of it cannot be read.
    """
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(f"{path}: the name ends in no known way; give {READABLE}.")
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            if suffix in TABLE_SUFFIXES:
                yield from _table_rows(path, file, "\t" if suffix == ".tsv" else ",")
            elif suffix == ".json":
                yield from _json_rows(path, file)
            else:
                yield from _json_lines(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is damaged or cut off ({error}).") from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines of bounded length, of a file that does not unpack to many times its size."""
    bound = unpacked_bound(path) if path.suffix.lower() == ".gz" else None
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise DataError(
                f"{path}: a line has more than {LONGEST_LINE >> 20} Mi characters; one row belongs on a line."
            )
        if bound is not None and file.buffer.tell() > bound:
            raise DataError(_swollen(path, bound))
        yield line


def _whole(path: Path, file: TextIO) -> str:
    """All of a file, within the same bounds."""
    bound = unpacked_bound(path) if path.suffix.lower() == ".gz" else LARGEST_JSON
    text = file.read(bound + 1)
    if len(text) > bound:
        if bound == LARGEST_JSON:
            raise DataError(f"{path} has more than {bound >> 30} GiB: it is read as a whole; give JSON lines (.jsonl).")
        raise DataError(_swollen(path, bound))
    return text


def unpacked_bound(path: Path) -> int:
    """Bytes that a packed file may unpack to: text packs to a third or a tenth, never to a hundredth."""
    return max(LEAST_UNPACKED, MOST_SWOLLEN * path.stat().st_size)


def _swollen(path: Path, bound: int) -> str:
    return (
        f"{path} unpacks to more than {bound >> 20} MiB, {MOST_SWOLLEN} times its size, as no text does: it is not read. If "
        "it is meant, unpack it first."
    )


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_lines(path, file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({_reason(error)}): {_short(line)}") from error
        yield number, _object(row, f"{path}, line {number}")


def _json_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    """A JSON array of objects, an object with one such array, or JSON lines under the name .json."""
    text = _whole(path, file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and _is_object(text.lstrip().splitlines()[0]):
            file.seek(0)
            yield from _json_lines(path, file)
            return
        line = getattr(error, "lineno", "?")
        raise DataError(f"{path}, line {line}: not valid JSON ({_reason(error)}).") from error
    if isinstance(content, dict):
        arrays = [value for value in content.values() if isinstance(value, list) and value and _is_row(value[0])]
        is_row = not arrays or {"chosen", "rejected"} <= set(content)
        content = [content] if is_row else arrays[0]
        if len(arrays) > 1 and not is_row:
            raise DataError(f"{path}: holds several arrays of rows; give each its own file.")
    if not isinstance(content, list):
        raise DataError(f"{path}: must hold an array of objects, found {type(content).__name__}.")
    for number, row in enumerate(content, start=1):
        yield number, _object(row, f"{path}, entry {number}")


def _table_rows(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST_LINE)  # the module's own limit of 128 KiB is less than a dialogue
    reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} fields, the header names {len(header)} "
                    f"({', '.join(header)}); quote fields that hold a comma or a line break."
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_short(str(error))}).") from error
    number = 0
    try:
        for batch in file.iter_batches(batch_size=16):  # few rows: one value repeated may stand for gigabytes
            if batch.nbytes > unpacked_bound(path):
                raise DataError(f"{path}, after row {number}: unpacks to far more than its size; it may be a trap.")
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}, after row {number}: not readable ({_short(str(error))}).") from error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be an object with named fields, found {type(row).__name__}.")
    return row


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def _is_object(line: str) -> bool:
    try:
        return _is_row(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _short(text: str, length: int = 60) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= length else text[:length] + "…")
