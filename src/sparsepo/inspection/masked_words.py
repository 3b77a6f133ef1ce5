"""Pairs with their offensive words masked, for pages and terminals; tables keep the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparsepo.data.content import ContentFilter, content_notice

from .records import PairRecord, SideRecord


def masked_record(record: PairRecord, words: ContentFilter) -> PairRecord:
    """The record with prompt and tokens masked; every number stays."""
    sides: dict[str, Any] = {name: _masked_side(side, words) for name, side in record.sides().items()}
    return replace(record, prompt=words.mask(record.prompt), **sides)


def notice_of(records: Sequence[PairRecord], words: ContentFilter | None) -> str:
    """What :func:`sparsepo.data.content.content_notice` says of the pairs' texts."""
    texts = [f"{record.prompt} {side.text}" for record in records for side in record.sides().values()]
    return content_notice(texts, words)


def _masked_side(side: SideRecord, words: ContentFilter) -> SideRecord:
    plain = [piece for piece, special in zip(side.pieces, side.special, strict=True) if not special]
    masked = iter(words.mask_pieces(plain))
    pieces = tuple(piece if special else next(masked) for piece, special in zip(side.pieces, side.special, strict=True))
    return replace(side, pieces=pieces)
