"""Pairs and token types with their offensive words masked, for pages and terminals; what is stored keeps the texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def masked(records: Iterable[PairRecord], words: ContentFilter | None) -> list[PairRecord]:
    """The records, masked where there is a filter."""
    return [record if words is None else masked_record(record, words) for record in records]


def announced(
    records: Sequence[PairRecord], subtitle: str, notes: Sequence[str], words: ContentFilter | None = None
) -> tuple[str, list[str]]:
    """A page's subtitle and notes, with the content notice where its texts (before they are masked) call for one."""
    notice = notice_of(records, words)
    if not notice:
        return subtitle, list(notes)
    warning = "may hold offensive language" if words is None else "offensive words are masked"
    return " · ".join(filter(None, [subtitle, warning])), [*notes, notice]


def masked_types(
    summaries: Mapping[str, Mapping[str, Any]], words: ContentFilter | None
) -> dict[str, Mapping[str, Any]]:
    """Statistics by group (:meth:`.statistics.Statistics.summary`) whose token types are masked; every number stays."""
    if words is None:
        return dict(summaries)
    return {name: {**own, "masks": _masked_masks(own["masks"], words)} for name, own in summaries.items()}


def notice_of_types(summaries: Mapping[str, Mapping[str, Any]], words: ContentFilter | None) -> str:
    """The content notice before tables of token types."""
    masks = [mask for own in summaries.values() for mask in own["masks"].values()]
    pieces = {row["piece"] for mask in masks for rows in mask["types"].values() for row in rows}
    return content_notice(sorted(pieces), words)


def _masked_masks(masks: Mapping[str, Mapping[str, Any]], words: ContentFilter) -> dict[str, Any]:
    return {
        name: {
            **own,
            "types": {
                kind: [{**row, "piece": words.mask(row["piece"])} for row in rows]
                for kind, rows in own["types"].items()
            },
        }
        for name, own in masks.items()
    }


def _masked_side(side: SideRecord, words: ContentFilter) -> SideRecord:
    plain = [piece for piece, special in zip(side.pieces, side.special, strict=True) if not special]
    masked = iter(words.mask_pieces(plain))
    pieces = tuple(piece if special else next(masked) for piece, special in zip(side.pieces, side.special, strict=True))
    return replace(side, pieces=pieces)
