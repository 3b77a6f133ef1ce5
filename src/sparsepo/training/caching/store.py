"""The cache on disk: safetensors files of consecutive rows, each whole or not there, and a manifest of what they hold.

``FOLDER/<key>/manifest.json`` and ``FOLDER/<key>/rows-00000000-00000512.safetensors``. A file holds, of its rows' sequences
in order (chosen, rejected, chosen, …), ``identity`` and ``length`` (response tokens), int64, and the plan's arrays over all
their response tokens. It is written under another name and renamed, so that an interrupted or a second run never leaves half
a file; a checksum finds what the disk has lost.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .fingerprint import hash_json, tensor_bytes
from .plan import CachePlan

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
# A file holds at most so many rows and (unless one row alone is larger) bytes
ROWS_OF_A_FILE = 512
BYTES_OF_A_FILE = 256 << 20
_STALE_SECONDS = 3600


@dataclass(frozen=True)
class Block:
    """Consecutive rows [first, last) of a data set."""

    first: int
    last: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"rows-{self.first:08d}-{self.last:08d}.safetensors"


def split_rows(row_bytes: np.ndarray) -> list[Block]:
    """Rows in files, by their sizes alone, so that every run and every process makes the same files."""
    blocks, first, total = [], 0, 0
    for row, size in enumerate(row_bytes.tolist()):
        if row > first and (row - first >= ROWS_OF_A_FILE or total + size > BYTES_OF_A_FILE):
            blocks.append(Block(first, row))
            first, total = row, 0
        total += size
    return [*blocks, Block(first, len(row_bytes))] if len(row_bytes) else blocks


class CacheFolder:
    """The files of one data set under one reference.

    Args:
        root: folder of all caches.
        description: everything that the numbers depend on, JSON types; its hash names the folder.
        plan: the arrays that are kept.
        blocks: the rows of each file.
    """

    def __init__(self, root: Path, description: dict[str, Any], plan: CachePlan, blocks: list[Block]) -> None:
        self.description = {"format": FORMAT, **description}
        self.plan, self.blocks = plan, blocks
        self.key = hash_json(self.description)[:20]
        self.path = Path(root) / self.key

    def create(self) -> None:
        """Make the folder and its manifest, and take away what killed runs left half-written. On one process."""
        self.path.mkdir(parents=True, exist_ok=True)
        for partial in self.path.glob("*.partial"):
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:  # not one that another run is writing
                partial.unlink(missing_ok=True)
        content = {
            **self.description,
            "rows": sum(block.last - block.first for block in self.blocks),
            "files": [block.file for block in self.blocks],
        }
        text = json.dumps(content, indent=1, default=str) + "\n"
        temporary = _partial(self.path / MANIFEST)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / MANIFEST)

    def missing(self) -> list[int]:
        """Numbers of the blocks that must be computed. What is damaged is named in a warning and taken away."""
        found = []
        for number, block in enumerate(self.blocks):
            path = self.path / block.file
            problem = check_file(path, self._shapes(), 2 * (block.last - block.first))
            if problem == ABSENT:
                found.append(number)
            elif problem:
                logger.warning("precompute_ref: %s is damaged (%s); its rows are computed again.", path, problem)
                path.unlink(missing_ok=True)
                found.append(number)
        return found

    def has(self, number: int) -> bool:
        """Whether the file of a block is there (another run may have written it meanwhile)."""
        return (self.path / self.blocks[number].file).is_file()

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a block's arrays."""
        write_file(self.path / self.blocks[number].file, tensors)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.plan.fields()


ABSENT = "not there"
_METADATA = "sparsepo"


def write_file(path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> None:
    """Write tensors and JSON settings with their checksum; the file appears whole, and equal content gives equal bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = _partial(path)
    try:
        stated = {"settings": dict(settings or {}), "crc32": _checksum(content, settings or {})}
        # one entry: safetensors orders several at random
        save_file(content, temporary, {_METADATA: json.dumps(stated, sort_keys=True)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, sequences: int | None = None) -> str:
    """Why a file cannot be used, or nothing.

    Args:
        path: the file.
        shapes: names of the arrays over response tokens and their shapes behind the token axis; None: not checked.
        sequences: how many sequences it holds.
    """
    if not path.is_file():
        return ABSENT
    try:
        with safe_open(path, framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            stated = json.loads((file.metadata() or {})[_METADATA])
        is_intact = stated["crc32"] == _checksum(content, stated["settings"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if not is_intact:
        return "its checksum does not match"
    if shapes is None:
        return ""
    if content.keys() != {"identity", "length", *shapes}:
        return f"it holds {', '.join(content)}"
    if content["identity"].dim() != 1 or content["length"].dim() != 1:
        return "its identities and lengths are no lists"
    if len(content["identity"]) != sequences or len(content["length"]) != sequences:
        return f"it holds {len(content['identity'])} sequences instead of {sequences}"
    tokens = int(content["length"].sum())
    for name, shape in shapes.items():
        if content[name].shape != (tokens, *shape):
            return f"{name} has shape {tuple(content[name].shape)} instead of {(tokens, *shape)}"
    return ""


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a file that is known to be whole."""
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()[_METADATA])["settings"]
        return {name: file.get_tensor(name) for name in file.keys()}, settings  # noqa: SIM118 - not a dict


def _checksum(content: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    value = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(content):
        value = zlib.crc32(f"{name}{content[name].dtype}{tuple(content[name].shape)}".encode(), value)
        if content[name].numel():
            value = zlib.crc32(tensor_bytes(content[name]), value)
    return f"{value:08x}"


def _partial(path: Path) -> Path:
    """A name of this process alone for what is being written."""
    return path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
