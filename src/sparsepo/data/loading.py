"""Preference data from local files, folders, lists of files, and the hub."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cells import Cells, table_from_rows
from .errors import DataError
from .formats import PAIRABLE_KINDS, PREFERENCE_KINDS, Kind, RowFormat, detect_format
from .reading import READABLE, data_suffix, read_rows

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

Source = str | Path | Sequence[str | Path]
PEEK = 100

_SPLITS = {"train": "train", "training": "train", "test": "test", "eval": "validation", "dev": "validation"}
_SPLITS |= {"val": "validation", "valid": "validation", "validation": "validation"}
_SLICE = re.compile(r"^(?P<name>[\w.-]*)(?:\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?$")


def load_preference_data(
    source: Source,
    split: str | None = None,
    streaming: bool = False,
    name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    kinds: Sequence[Kind] = PREFERENCE_KINDS,
    data_dir: str | None = None,
    revision: str | None = None,
) -> Dataset | IterableDataset:
    """Load rows and make sure that they have an accepted format.

    Args:
        source: a file (JSON, JSONL, CSV, TSV, each also .gz, or Parquet), a folder holding such files or written by
            ``save_to_disk``, a list of files, or a hub id.
        split: as in ``datasets``: ``"train"``, ``"test[:200]"``, ``"[:10%]"``. In a folder, files are assigned by name
            (``train.jsonl``, ``data/test-00000.parquet``). Without it: "train", or the only split.
        streaming: read rows as they are needed instead of loading all.
        name: configuration of a hub data set.
        columns: renames, ``{"question": "prompt"}``.
        kinds: formats that the caller can use; scored completions and votes are refused by default, because they must
            be made into pairs first.
        data_dir: folder inside a hub data set, such as ``harmless-base``.
        revision: revision of a hub data set.

    Returns:
        A ``Dataset`` or ``IterableDataset``, rows as they stand (transcripts are not split yet). Local values of a wrong
        type are None, with what was there under ``load_problem``.

    Raises:
        DataError: file missing (names near ones), row unreadable (names file and line), columns of no accepted format.
    """
    dataset, text = load_rows(source, split, streaming, name, columns=columns, data_dir=data_dir, revision=revision)
    found = format_of(dataset, text)
    if found.kind not in kinds:
        raise DataError(_refusal(found, text, kinds))
    logger.info("%s: %s", text, found.describe())
    return dataset


def load_rows(
    source: Source,
    split: str | None = None,
    streaming: bool = False,
    name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    revision: str | None = None,
) -> tuple[Any, str]:
    """Rows of any columns, from wherever :func:`load_preference_data` reads them, and what messages call the source.

    Raises:
        DataError: file missing (names near ones) or row unreadable (names file and line).
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        path = Path(source).expanduser()
        if path.exists() or _means_path(text):
            dataset = _load_path(path, split, streaming)
        else:
            dataset = _load_hub(text, split, streaming, name, data_dir, revision)
    else:
        text = ", ".join(map(str, source))
        dataset = _load_files([_existing(Path(item).expanduser()) for item in source], split, streaming)
    if columns:
        dataset = _rename(dataset, columns, text)
    return dataset, text


def format_of(dataset: Any, source: str = "the data") -> RowFormat:
    """Format of a ``Dataset``, ``IterableDataset`` or list of rows, told from its first rows.

    Raises:
        DataError: see :func:`sparsepo.data.formats.detect_format`.
    """
    return detect_format(list(islice(iter(dataset), PEEK)), source)


def _refusal(found: RowFormat, source: str, kinds: Sequence[Kind]) -> str:
    if found.kind in PAIRABLE_KINDS:
        return (
            f"{source} holds {found.describe()} ({', '.join(found.columns)}), not pairs; make pairs first: "
            f"`sparsepo data pairs {source} --output pairs.jsonl`."
        )
    return f"{source} holds {found.describe()}; expected {' or '.join(kinds)} (prompt, text, reward or votes)."


def _means_path(text: str) -> bool:
    """Whether a source that does not exist was meant as a path: a hub id is "name" or "owner/name"."""
    looks_like = text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text
    return looks_like or data_suffix(Path(text)) is not None or text.endswith(".gz")


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"No file {path}: there is no folder {folder}.")
    near = difflib.get_close_matches(path.name, [entry.name for entry in sorted(folder.iterdir())], n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(str(folder / entry) for entry in near)}?" if near else ""
    raise DataError(f"No file {path}.{hint}")


def _load_path(path: Path, split: str | None, streaming: bool) -> Any:
    _existing(path)
    if path.is_file():
        return _load_files([path], split, streaming)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _load_saved(path, split, streaming)
    files = sorted(file for file in path.rglob("*") if file.is_file() and data_suffix(file) and _is_visible(file, path))
    if not files:
        raise DataError(f"{path} holds no data files; put {READABLE} files there.")
    return _load_files(files, split, streaming)


def _load_files(files: Sequence[Path], split: str | None, streaming: bool) -> Any:
    from datasets import Dataset, IterableDataset

    if not files:
        raise DataError("The list of data files is empty.")
    files, window = _of_split(files, split)
    source = ", ".join(map(str, files))
    if streaming:
        if window != (None, None):
            raise DataError(f"split {split!r}: a streamed file cannot be sliced; leave the [start:stop] out.")
        return IterableDataset.from_generator(_stream_rows, gen_kwargs={"files": [str(file) for file in files]})
    rows = [row for file in files for _, row in read_rows(file)]
    if not rows:
        raise DataError(f"{source} holds no rows.")
    dataset = Dataset(table_from_rows(rows, source))
    if window == (None, None):
        return dataset
    start, stop = (_bound(bound, len(dataset)) for bound in window)
    return dataset.select(range(start or 0, min(len(dataset), len(dataset) if stop is None else stop)))


def _stream_rows(files: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of all files in turn; kinds of columns are learnt from the first rows."""
    rows = (row for file in files for _, row in read_rows(Path(file)))
    first = list(islice(rows, PEEK))
    cells = Cells(first)
    for row in first:
        yield cells.tidy(row)
    for row in rows:
        yield cells.tidy(row)


def _of_split(files: Sequence[Path], split: str | None) -> tuple[list[Path], tuple[str | None, str | None]]:
    """Files of a split, and the bounds of its slice."""
    match = _SLICE.match(split or "")
    if match is None:
        raise DataError(f"split {split!r} is not understood; write 'train', 'test[:200]' or '[:10%]'.")
    window = (match["start"], match["stop"])
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_in_name(file) if len(files) > 1 else None, []).append(file)
    wanted = _SPLITS.get(match["name"], match["name"]) or None
    if set(by_split) == {None}:
        if wanted in (None, "train"):
            return list(files), window
        raise DataError(
            f"No split {split!r}: {_listed(files)} is one whole; leave the split out, or name another file."
        )
    if wanted is None and "train" not in by_split and len(by_split) > 1:
        raise DataError(f"Which split? {_listed(files)} hold {', '.join(str(key) for key in by_split)}.")
    chosen = by_split.get(wanted or ("train" if "train" in by_split else next(iter(by_split))))
    if chosen is None:
        known = ", ".join(sorted(str(key) for key in by_split if key))
        raise DataError(f"No split {split!r} among {_listed(files)}; there are: {known}.")
    return chosen, window


def _split_in_name(path: Path) -> str | None:
    words = [*re.split(r"[^a-z]+", path.name.lower()), path.parent.name.lower()]
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _bound(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)


def _load_saved(path: Path, split: str | None, streaming: bool) -> Any:
    from datasets import load_from_disk

    dataset = load_from_disk(str(path))
    dataset = _one_split(dataset, split, str(path))
    return dataset.to_iterable_dataset() if streaming else dataset


def _load_hub(
    source: str, split: str | None, streaming: bool, name: str | None, data_dir: str | None, revision: str | None
) -> Any:
    from datasets import load_dataset

    try:
        loaded = load_dataset(source, name=name, split=split, streaming=streaming, data_dir=data_dir, revision=revision)
    except Exception as error:  # the hub's client raises many kinds; the reader needs to know what was tried
        near = difflib.get_close_matches(source, [entry.name for entry in sorted(Path().iterdir())], n=3, cutoff=0.6)
        hint = f" Did you mean the file {' or '.join(near)}?" if near else ""
        raise DataError(
            f"{source!r} is no local file, and loading it from the hub failed: {type(error).__name__}: {error}{hint}"
        ) from error
    return _one_split(loaded, None, source)


def _one_split(loaded: Any, split: str | None, source: str) -> Any:
    """One split of what may be a dictionary of splits."""
    if not isinstance(loaded, dict):
        if split not in (None, "train"):
            raise DataError(f"No split {split!r}: {source} is one whole; leave the split out.")
        return loaded
    if split is None:
        split = "train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None
    if split not in loaded:
        raise DataError(f"{source} has the splits {', '.join(loaded)}; choose one of them (split=..., or --split).")
    return loaded[split]


def _rename(dataset: Any, columns: Mapping[str, str], source: str) -> Any:
    present = list(dataset.column_names or next(iter(dataset)))
    for old, new in columns.items():
        if old not in present:
            raise DataError(f"{source} has no column {old!r} to rename to {new!r}; it has {', '.join(present)}.")
        if new in present:
            dataset = dataset.remove_columns(new)
    return dataset.rename_columns(dict(columns))


def _is_visible(file: Path, root: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in file.relative_to(root).parts)


def _listed(files: Sequence[Path]) -> str:
    names = ", ".join(str(file) for file in files[:4])
    return names + (f" and {len(files) - 4} more" if len(files) > 4 else "")
