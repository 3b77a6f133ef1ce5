"""Records on disk: Parquet or JSON lines, written while they come and read one by one.

One row a token. A response without tokens has one row whose ``token`` is −1, so that no pair is lost. Columns are named in
docs/inspect.md; float32 values survive both formats exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .records import SIDES, STORED, PairRecord, SideRecord

VERSION = "1"
FORMATS = ("parquet", "jsonl")
_ROWS = 20_000  # of a row group: bounds memory in writing and reading
_LONGEST_LINE = 256 << 20  # characters of a JSON line: a token's row, or a prompt
# Derived quantities are written for whoever reads the table without this library
DERIVED = ("reward_part", "kl_part", "running")
_PAIR = ("pair", "group", "loss", "beta", "margin", "prompt")
_SIDE = ("side", "reward", "token", "token_id", "piece", "special")
COLUMNS = (*_PAIR, *_SIDE, *STORED, *DERIVED)
_TYPES = {
    **dict.fromkeys(("pair", "token", "token_id"), "int64"),
    **dict.fromkeys(("loss", "beta", "margin", "reward"), "float64"),
    **dict.fromkeys(("group", "side", "prompt", "piece"), "string"),
    "special": "bool",
    "prompt_ids": "ids",
    **dict.fromkeys((*STORED, *DERIVED), "float32"),
}


class RecordWriter:
    """Writes records to one file; a context manager. The file appears under its name when it is whole.

    Args:
        path: ends in ``.parquet`` or ``.jsonl``.

    Raises:
        ValueError: another ending.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        format_of(self.path)
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._rows: list[dict[str, Any]] = []
        self._file: Any = None

    def __enter__(self) -> RecordWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if format_of(self.path) == "parquet":
            import pyarrow.parquet as pq

            self._file = pq.ParquetWriter(self._partial, _schema(), compression="zstd")
        else:
            self._file = self._partial.open("w", encoding="utf-8", errors="surrogatepass")
            self._file.write(json.dumps({"sparsepo_records": VERSION}) + "\n")
        return self

    def add(self, record: PairRecord) -> None:
        """Write one record."""
        rows = list(rows_of(record))
        if format_of(self.path) == "jsonl":
            self._file.writelines(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
            return
        self._rows += rows
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist([_clean(row) for row in self._rows], schema=_schema()))
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)


def format_of(path: str | os.PathLike[str]) -> str:
    """``parquet`` or ``jsonl``, by a file's ending."""
    ending = Path(path).suffix.removeprefix(".")
    if ending not in FORMATS:
        raise ValueError(
            f"{path}: records are stored as .parquet or .jsonl, not as {ending or 'a file without ending'}."
        )
    return ending


def rows_of(record: PairRecord) -> Iterator[dict[str, Any]]:
    """The table's rows of a record, Python types."""
    pair = {
        "pair": record.number,
        "group": record.group,
        "loss": record.loss,
        "beta": record.beta,
        "margin": record.margin,
        "prompt": record.prompt,
        "prompt_ids": record.prompt_ids.tolist(),
    }
    for name, side in record.sides().items():
        values = {key: side.values(key) for key in (*STORED, *DERIVED)}
        own = {**pair, "side": name, "reward": side.reward}
        if not len(side):
            yield own | {"token": -1, "token_id": -1, "piece": "", "special": False} | dict.fromkeys(values)
        for token in range(len(side)):
            yield own | {
                "token": token,
                "token_id": int(side.token_ids[token]),
                "piece": side.pieces[token],
                "special": bool(side.special[token]),
                **{key: None if column is None else float(column[token]) for key, column in values.items()},
            }
            own = own | {"prompt": None, "prompt_ids": None}  # said once a side


def read_records(path: str | os.PathLike[str]) -> Iterator[PairRecord]:
    """The records of a file, one by one.

    Raises:
        ValueError: the file is none of ours, or damaged; the message names it.
    """
    path = Path(path)
    rows = _parquet_rows(path) if format_of(path) == "parquet" else _json_rows(path)
    with _named(path):
        # neighbouring pairs may have the same number where files were joined, but not the same side twice
        yield from _pairs(groupby(rows, key=lambda row: (row["group"], row["pair"], row["side"])))


def _pairs(sides: Iterable[tuple[Any, Iterable[dict[str, Any]]]]) -> Iterator[PairRecord]:
    chosen: list[dict[str, Any]] | None = None
    for (_, _, side), group in sides:
        rows = list(group)
        if side != SIDES[0 if chosen is None else 1]:
            raise ValueError(f"pair {rows[0]['pair']} lacks its {SIDES[0 if chosen is None else 1]} side")
        if chosen is None:
            chosen = rows
            continue
        head = chosen[0]
        if head["pair"] != rows[0]["pair"]:
            raise ValueError(f"pair {head['pair']} lacks its rejected side")
        yield PairRecord(
            number=int(head["pair"]),
            group=head["group"],
            prompt=head["prompt"],
            prompt_ids=np.array(head["prompt_ids"], dtype=np.int64),
            chosen=_side(chosen),
            rejected=_side(rows),
            loss=float(head["loss"]),
            beta=float(head["beta"]),
        )
        chosen = None
    if chosen is not None:
        raise ValueError(f"pair {chosen[0]['pair']} lacks its rejected side")


def _side(rows: list[dict[str, Any]]) -> SideRecord:
    reward = float(rows[0]["reward"])
    rows = [row for row in rows if row["token"] >= 0]
    columns: dict[str, Any] = {}
    for name in STORED:
        values = [row[name] for row in rows]
        columns[name] = None if not values or None in values else np.array(values, dtype=np.float32)
    return SideRecord(
        np.array([row["token_id"] for row in rows], dtype=np.int64),
        tuple(row["piece"] for row in rows),
        np.array([row["special"] for row in rows], dtype=bool),
        reward,
        **columns,
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError) as error:
        raise ValueError(
            f"{path} does not hold records that `sparsepo inspect` wrote, or is damaged: {error}"
        ) from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    version = (file.schema_arrow.metadata or {}).get(b"sparsepo_records", b"").decode(errors="replace")
    _check_version(path, version)
    try:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"its pages cannot be read ({error})") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="strict") as file:
        try:
            first = json.loads(file.readline(_LONGEST_LINE) or "null")
            _check_version(path, first.get("sparsepo_records") if isinstance(first, dict) else None)
            while line := file.readline(_LONGEST_LINE):
                yield json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no file of JSON lines: {error}") from error


def _check_version(path: Path, version: Any) -> None:
    if not version:
        raise ValueError(f"{path} does not hold records: write it with `sparsepo inspect`.")
    if version != VERSION:
        raise ValueError(f"{path} was written by another version of this library (records {version}, here {VERSION}).")


def _schema() -> Any:
    import pyarrow as pa

    types = {name: getattr(pa, kind)() for name, kind in _TYPES.items() if kind not in ("ids", "bool")}
    types |= {"special": pa.bool_(), "prompt_ids": pa.list_(pa.int64())}
    columns = [*_PAIR, "prompt_ids", *_SIDE, *STORED, *DERIVED]
    return pa.schema([(name, types[name]) for name in columns], metadata={"sparsepo_records": VERSION})


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """Lone surrogates, which a Parquet text cannot hold, as their escapes."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }
