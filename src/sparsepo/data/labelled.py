"""Texts with a class: archives or folders whose folders or files are named after classes, or rows with text and label."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .errors import DataError
from .reading import data_suffix, read_rows

LabelledText = tuple[str, str]  # text, label
# Names of polarity are brought into the form that sentiment classifiers use
_POLARITY = {"pos": "POSITIVE", "positive": "POSITIVE", "neg": "NEGATIVE", "negative": "NEGATIVE"}
_LABELS = ("label", "sentiment", "class")


def read_labelled(source: str | Path) -> list[LabelledText] | None:
    """Texts and their classes; None where the source holds something else.

    A class is the folder that a text file lies in (``pos/``, ``neg/``; a text a file), or the ending of a file
    (``rt-polarity.pos``; a text a line), or the column ``label`` (``sentiment``, ``class``) of rows with a ``text``.

    Raises:
        DataError: no such source, or one class only.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"No file {path}.")
    if path.suffix.lower() == ".zip" or (path.is_dir() and not _has_rows(path)):
        found = list(_of_files(_zipped(path) if path.is_file() else _in_folder(path)))
    elif path.is_file() and data_suffix(path):
        found = list(_of_rows(path))
    else:
        return None
    if not found:
        return None
    labels = {label for _, label in found}
    if len(labels) < 2:
        raise DataError(
            f"{path}: all {len(found)} texts have the label {labels.pop()!r}; a classifier needs two classes."
        )
    return found


def _has_rows(path: Path) -> bool:
    return any(data_suffix(file) for file in path.rglob("*") if file.is_file())


def _zipped(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/"):
                    yield PurePosixPath(name), archive.read(name)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a readable zip archive ({error}).") from error


def _in_folder(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield PurePosixPath(file.relative_to(path).as_posix()), file.read_bytes()


def _of_files(files: Iterator[tuple[PurePosixPath, bytes]]) -> Iterator[LabelledText]:
    for name, content in files:
        if name.name.lower().startswith("readme") or any(part.startswith((".", "_")) for part in name.parts):
            continue
        text = _decoded(content)
        ending = name.suffix.lower().lstrip(".")
        if ending in _POLARITY:
            for line in text.splitlines():
                if line.strip():
                    yield line.strip(), _POLARITY[ending]
        elif ending == "txt" and len(name.parts) > 1 and text.strip():
            yield text.strip(), _POLARITY.get(name.parts[-2].lower(), name.parts[-2])


def _of_rows(path: Path) -> Iterator[LabelledText]:
    for number, row in read_rows(path):
        label = next((row[name] for name in _LABELS if name in row), None)
        text = row.get("text")
        if label is None or not isinstance(text, str) or "reward" in row or "chosen" in row:
            return  # rows of another kind
        if not text.strip():
            continue
        if not isinstance(label, (str, int)):
            raise DataError(f"{path}, row {number}: label={label!r} is neither a name nor a whole number.")
        yield text, _POLARITY.get(str(label).lower(), str(label))


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")
