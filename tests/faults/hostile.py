"""Generators of files that no one means well with, and the rule that every reader keeps."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sparsepo.cli.base import CliError

# what a reader may raise: each has a message that names the file
CLEAR = (ValueError, OSError, CliError)

words = st.sampled_from(
    ["good film", "", " ", "\ud800", "é\x00", "<script>", "../../x", "=1+1", "𝒳" * 3, "\u202e", "Human: a"]
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**30), float("nan"), float("inf"), 1e308, -0.0, 2**63])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words, st.text(max_size=12))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "a", "\udfff", ""]), inner, max_size=3),
    ),
    max_leaves=8,
)
FIELDS = ["prompt", "chosen", "rejected", "text", "reward", "label", "chosen_weights", "completion", "history", "tools"]
names = st.one_of(
    st.sampled_from(FIELDS), st.text(max_size=6), st.sampled_from(["\ud801", "load_problem", "row_id", ""])
)
rows = st.one_of(
    st.dictionaries(names, values, max_size=5),
    st.fixed_dictionaries({"prompt": values, "chosen": values, "rejected": values}),
    st.fixed_dictionaries({"prompt": words, "text": words, "reward": numbers}),
    values,
)
DEEP = "[" * 200_000


def as_json(value: Any) -> str:
    """JSON with what JSON does not know: NaN, lone surrogates, huge numbers."""
    return json.dumps(value, ensure_ascii=True, allow_nan=True)


def texts_of_rows() -> st.SearchStrategy[str]:
    """JSON lines: rows, half rows, and what is no row."""
    line = st.one_of(rows.map(as_json), rows.map(lambda row: as_json(row)[:-1]), st.text(max_size=20), st.just(DEEP))
    return st.lists(line, max_size=4).map("\n".join)


def bytes_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Texts in one encoding or another, damaged or whole, and noise."""
    encodings = st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig", "cp037"])
    encoded = st.builds(lambda text, name: text.encode(name, "replace"), texts, encodings)
    spoilt = st.builds(
        lambda content, at, byte: (
            content[: at % (len(content) + 1)] + bytes([byte]) + content[at % (len(content) + 1) :]
        ),
        encoded,
        st.integers(0, 10_000),
        st.integers(0, 255),
    )
    return st.one_of(encoded, spoilt, st.binary(max_size=60))


def packed(content: bytes, cut: int) -> bytes:
    """A gzip file, whole or cut off."""
    whole = gzip.compress(content)
    return whole if cut < 0 else whole[: cut % (len(whole) + 1)]


def bomb(size: int = 200 << 20) -> bytes:
    """A gzip file of zeros that unpacks to a thousand times its size."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb") as file:
        for _ in range(size >> 20):
            file.write(b"0" * (1 << 20))
    return buffer.getvalue()


def safetensors(header: Any, data: bytes) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else as_json(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """No file appears beside a folder."""
    before = sorted(folder.parent.iterdir())
    yield
    assert sorted(folder.parent.iterdir()) == before


def clear_or_correct(read: Callable[[], Any], *named: str) -> Any:
    """Run a reader: it returns, or says clearly what is wrong (and names what it is about)."""
    try:
        return read()
    except CLEAR as error:
        message = str(error)
    missing = [name for name in named if name not in message]
    assert message.strip(), "an error without a message"
    assert not missing, f"the message names none of {missing}: {message}"
    return None
