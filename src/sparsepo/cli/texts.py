"""Texts for supervised fine-tuning: local files of many kinds, or hub data sets, as rows that TRL's SFT takes."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsepo.data.formats import TEXT_NAMES, first_of, is_messages
from sparsepo.data.hh import is_hh_text, split_hh_text
from sparsepo.data.joining import joined
from sparsepo.data.reading import MOST_SWOLLEN, READABLE, data_suffix, read_rows, unpacked_bound

from .base import CliError

Row = dict[str, Any]
# An archive of at least this many files holds one text a file; of fewer, one text a line
MANY_FILES = 20
_ACCEPTED = (
    "text; prompt and completion (or text, or response); prompt and chosen; chosen alone (a dialogue or messages); "
    "messages"
)


def sft_row(row: Row) -> Row | None:
    """A row of any accepted kind as TRL's SFT wants it.

    Returns:
        ``{"text"}``, ``{"prompt", "completion"}`` or ``{"messages"}``; None where the answer is missing or empty.

    Raises:
        CliError: none of the accepted fields is there; names those found.
    """
    if is_messages(row.get("messages")):
        return {"messages": row["messages"]}
    prompt = row.get("prompt")
    answer_name = first_of(("chosen", "completion", *TEXT_NAMES), row)
    if answer_name is None:
        raise CliError(f"A row has the fields {', '.join(map(repr, row))}; accepted are {_ACCEPTED}.")
    answer = row[answer_name]
    if is_messages(answer):
        return {"prompt": prompt, "completion": answer} if is_messages(prompt) else {"messages": answer}
    if not isinstance(answer, str) or not answer.strip():
        return None
    if isinstance(prompt, str) and prompt:
        # stored completions are often without the space that separated them from the prompt
        if answer_name not in ("chosen", "completion"):
            prompt, answer = joined(prompt, answer)
        return {"prompt": prompt, "completion": answer}
    if is_hh_text(answer):
        parts = split_hh_text(answer)
        return {"prompt": parts[0], "completion": parts[1]} if parts is not None and parts[1].strip() else None
    return {"text": answer}


def local_rows(source: str) -> Iterator[Row]:
    """Rows of one local source: a data file, a text file, a zip of text files, or a folder of any of these.

    Raises:
        CliError: no such path, or nothing to read in it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        data = [file for file in files if data_suffix(file) or file.suffix.lower() == ".zip"]
        texts = [file for file in files if file.suffix.lower() == ".txt" and not _is_readme(file.name)]
        if not data and not texts:
            raise CliError(f"{path} holds neither data files ({READABLE}) nor .txt nor .zip files.")
        for file in data:
            yield from local_rows(str(file))
        yield from _texts([(str(file), file.read_bytes()) for file in texts])
    elif not path.exists():
        raise CliError(f"{source}: no such file or folder.")
    elif path.suffix.lower() == ".zip":
        yield from _zipped(path)
    elif data_suffix(path):
        yield from (row for _, row in read_rows(path))
    else:
        yield from _texts([(str(path), path.read_bytes())])


def load_texts(sources: Sequence[str]) -> tuple[Any, Counter[str]]:
    """All rows of local sources as one ``Dataset`` for SFT.

    Where the sources are of different kinds, prompts and completions are joined into texts.

    Returns:
        The data set and how many rows were used and left out.
    """
    from datasets import Dataset

    counts: Counter[str] = Counter()
    rows: list[Row] = []
    for source in sources:
        for row in local_rows(source):
            made = sft_row(row)
            counts["left out (no text)" if made is None else "used"] += 1
            if made is not None:
                rows.append(made)
    if not rows:
        raise CliError(f"{', '.join(sources)}: no texts found.")
    kinds = {(*row, is_messages(row.get("prompt"))) for row in rows}
    if len(kinds) > 1:
        rows = [{"text": as_text(row)} for row in rows]
    return Dataset.from_list(rows), counts


def as_text(row: Row) -> str:
    """A plain text of an SFT row (for a tokenizer, or a data set of several kinds of rows)."""
    if "text" in row:
        return str(row["text"])
    parts = row["messages"] if "messages" in row else [row["prompt"], row["completion"]]
    texts = []
    for part in parts:
        messages = part if isinstance(part, list) else [part]
        texts += [message if isinstance(message, str) else str(message["content"]) for message in messages]
    return ("\n\n" if "messages" in row else "").join(texts)


def _zipped(path: Path) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                name
                for name in sorted(archive.namelist())
                if not name.endswith("/") and not _is_readme(name) and not _is_hidden(Path(name))
            ]
            size = sum(archive.getinfo(name).file_size for name in names)
            bound = unpacked_bound(path)
            if size > bound:
                raise CliError(
                    f"{path} unpacks to {size >> 20:,} MiB, over {MOST_SWOLLEN} times its size, as no text does: it is not "
                    "read. If it is meant, unpack it first and give the folder."
                )
            yield from _texts([(f"{path}:{name}", _member(archive, name)) for name in names])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise CliError(f"{path} is not a readable zip archive ({error}).") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive, no longer than the archive says that it is."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:
        content = file.read(size + 1)
    if len(content) > size:
        raise zipfile.BadZipFile(f"{name} is longer than it says")
    return content


def _texts(files: list[tuple[str, bytes]]) -> Iterator[Row]:
    for name, content in files:
        text = _decoded(name, content)
        units = [text] if len(files) >= MANY_FILES else text.splitlines()
        yield from ({"text": unit.strip()} for unit in units if unit.strip())


def _decoded(name: str, content: bytes) -> str:
    if b"\0" in content:
        raise CliError(f"{name} is not a text file.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _is_readme(name: str) -> bool:
    return Path(name).name.lower().startswith("readme")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
