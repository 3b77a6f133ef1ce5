"""The same pairs several times on one page: runs below one another, or steps of training behind a slider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.content import ContentFilter

from .document import write_whole
from .masked_words import announced, masked
from .page import add_sizes, finite, layers_of, packed_side, render
from .records import PairRecord


def frames_page(
    frames: Mapping[str, Sequence[PairRecord]],
    *,
    title: str,
    subtitle: str = "",
    slider: str = "",
    notes: Sequence[str] = (),
    words: ContentFilter | None = None,
) -> str:
    """The page as text.

    Args:
        frames: name of a run or step → its pairs. A pair is the same where its number is; the first frame's come first.
        title, subtitle: on top.
        slider: what the frames are steps of; "": they stand below one another.
        notes: sentences for the foot.
        words: masks offensive words.

    Raises:
        ValueError: no frame has a pair.
    """
    subtitle, notes = announced([record for own in frames.values() for record in own], subtitle, notes, words)
    keyed = {name: {record.number: record for record in masked(own, words)} for name, own in frames.items()}
    numbers = list(dict.fromkeys(number for own in keyed.values() for number in own))
    if not numbers:
        raise ValueError("There is no pair to show.")
    scales: dict[str, list[Any]] = {}
    pairs = []
    for number in numbers:
        first = next(own[number] for own in keyed.values() if number in own)
        packed: list[dict[str, Any] | None] = []
        for own in keyed.values():
            packed.append(_packed(own.get(number), first if any(packed) else None))
            if (record := own.get(number)) is not None:
                add_sizes(scales, record)
        pairs.append({"number": number, "group": first.group, "prompt": first.prompt, "frames": packed})
    content = {
        "layers": layers_of(scales),
        "frames": list(keyed),
        "pairs": pairs,
    }
    return render(
        "frames.html",
        styles=("base.css", "frames.css"),
        scripts=("tokens.js", "frames.js"),
        data=content,
        title=title,
        subtitle=subtitle,
        slider=slider,
        notes=notes,
    )


def write_frames(path: str | os.PathLike[str], frames: Mapping[str, Sequence[PairRecord]], **page: Any) -> Path:
    """Write :func:`frames_page`; returns its path."""
    return write_whole(path, frames_page(frames, **page))


def _packed(record: PairRecord | None, first: PairRecord | None) -> dict[str, Any] | None:
    """A pair of a frame; its tokens are left out where they are those of the first frame."""
    if record is None:
        return None
    found: dict[str, Any] = {"margin": finite(record.margin), "loss": finite(record.loss)}
    for name, side in record.sides().items():
        own = packed_side(side)
        if first is not None and np.array_equal(first.sides()[name].token_ids, side.token_ids):
            own = {key: value for key, value in own.items() if key not in ("ids", "pieces", "special")}
        found[name] = own
    return found
