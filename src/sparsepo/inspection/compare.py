"""Runs or tasks side by side: do their masks choose the same tokens, and how do their patterns differ?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.content import ContentFilter
from sparsepo.evaluation.ranking import spearman

from .document import Document, number, with_interval, write_whole
from .frames import write_frames
from .records import PairRecord, SideRecord
from .statistics import Statistics, top_types
from .storing import FORMATS, read_records
from .summary_page import add_statistics
from .tally import Moments, Tally
from .token_classes import Tagger

PAGE_PAIRS = 100
AGREEMENT = {
    "rank": "rank correlation within responses",
    "zeros": "share of tokens on which both say zero or both do not",
    "zeros by chance": "the same, were the two independent",
    "top": "overlap of the largest fifth (Jaccard of token types)",
}


@dataclass(frozen=True)
class Source:
    """A table of records.

    Args:
        name: of the run or task.
        path: its ``tokens.parquet`` or ``tokens.jsonl``.
    """

    name: str
    path: Path


def split_name(text: str) -> tuple[str, str]:
    """NAME=PATH → name and path; "" for the name where there is none. A path that exists may hold an equals sign."""
    name, _, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
    return name, path


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Tables from ``NAME=PATH`` or ``PATH``, a file or a folder that ``sparsepo inspect --output`` wrote.

    Raises:
        ValueError: no such table, fewer than two, or two of one name.
    """
    found = []
    for text in inputs:
        name, path = split_name(text)
        place = Path(path).expanduser()
        if place.is_dir():
            tables = [place / f"tokens.{ending}" for ending in FORMATS if (place / f"tokens.{ending}").is_file()]
            if not tables:
                raise ValueError(
                    f"{place} holds no tokens.parquet or tokens.jsonl: write it with `sparsepo inspect MODEL DATA "
                    f"--output {place}`."
                )
            place = tables[0]
        elif not place.is_file():
            raise ValueError(f"{text}: there is no file or folder {place}.")
        found.append(Source(name or (place.parent.name if place.stem == "tokens" else place.stem), place))
    names = [source.name for source in found]
    if len(found) < 2:
        raise ValueError("Give at least two runs to compare.")
    if len(set(names)) < len(names):
        raise ValueError(f"Two runs have one name ({', '.join(names)}): name them, NAME=PATH.")
    return found


@dataclass
class Comparison:
    """What several tables say.

    Args:
        statistics: by run.
        agreement: by two runs → what of :data:`AGREEMENT` → estimate; of pairs that both hold, token by token.
        shared: by two runs, the number of such pairs.
        shown: by run, the first pairs.
    """

    statistics: dict[str, Statistics]
    agreement: dict[tuple[str, str], dict[str, Any]]
    shared: dict[tuple[str, str], int]
    shown: dict[str, list[PairRecord]]

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """By run, what :meth:`Statistics.summary` says."""
        return {name: own.summary() for name, own in self.statistics.items()}


def compare(
    sources: Sequence[Source], *, mask: str = "reward_mask", language: str | None = None, tagger: Tagger | None = None
) -> Comparison:
    """Read the tables and compare.

    Pairs are the same where number, and all token ids, are. Runs of other tokenizers share no tokens: their statistics
    stand side by side, and ``sparsepo inspect transfer`` compares them by characters.

    Args:
        sources: of :func:`find_sources`.
        mask: ``reward_mask`` or ``kl_mask``: what agreement is of.
        language, tagger: as :class:`sparsepo.inspection.statistics.Statistics`.
    """
    statistics: dict[str, Statistics] = {}
    shown: dict[str, list[PairRecord]] = {}
    masks: dict[str, dict[int, PairRecord]] = {}
    for source in sources:
        own = statistics[source.name] = Statistics(source.name, language, tagger)
        shown[source.name], masks[source.name] = [], {}
        for record in read_records(source.path):
            own.add(record)
            if len(shown[source.name]) < PAGE_PAIRS:
                shown[source.name].append(record)
            masks[source.name][record.number] = _bare(record, mask)
    agreement, shared = {}, {}
    for a, b in combinations(masks, 2):
        both = [(masks[a][n], masks[b][n]) for n in masks[a] if n in masks[b] and _same(masks[a][n], masks[b][n])]
        shared[a, b] = len(both)
        agreement[a, b] = _agreement(both, mask)
    return Comparison(statistics, agreement, shared, shown)


def _bare(record: PairRecord, mask: str) -> PairRecord:
    """A record with token ids and one mask, small enough that all of a table's fit in memory."""
    sides: dict[str, Any] = {
        name: SideRecord(side.token_ids, ("",) * len(side), side.special, 0.0, **{mask: side.values(mask)})
        for name, side in record.sides().items()
    }
    return replace(record, prompt="", **sides)


def _same(a: PairRecord, b: PairRecord) -> bool:
    return all(
        np.array_equal(one.token_ids, other.token_ids)
        for one, other in zip(a.sides().values(), b.sides().values(), strict=True)
    )


def _agreement(pairs: Sequence[tuple[PairRecord, PairRecord]], mask: str) -> dict[str, Any]:
    tally, moments = Tally(), Moments()
    for a, b in pairs:
        for one, other in zip(a.sides().values(), b.sides().values(), strict=True):
            x, y = one.values(mask), other.values(mask)
            if x is None or y is None or not len(x):
                continue
            moments.add(x, y)
            if (rank := spearman(x, y)) is not None:
                tally.add_sums("rank", 1, rank)
            zx, zy = x == 0, y == 0
            tally.add_sums("zeros", len(x), float((zx == zy).sum()))
            chance = zx.mean() * zy.mean() + (1 - zx.mean()) * (1 - zy.mean())
            tally.add_sums("zeros by chance", len(x), float(chance) * len(x))
            tops = top_types(one, x), top_types(other, y)
            if union := tops[0] | tops[1]:
                tally.add_sums("top", 1, len(tops[0] & tops[1]) / len(union))
    found: dict[str, Any] = {name: own.to_json() for name, own in tally.estimates(AGREEMENT).items()}
    return found | {"correlation": moments.correlation()}


def agreement_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of agreement: a column two runs."""
    both = list(comparison.agreement)
    rows = [
        ["pairs in both", *(f"{comparison.shared[two]:,}" for two in both)],
        ["correlation over all tokens", *(number(comparison.agreement[two]["correlation"]) for two in both)],
    ]
    for name, text in AGREEMENT.items():
        cells = [with_interval(comparison.agreement[two].get(name), share="zeros" in name) for two in both]
        rows.append([text, *cells])
    return ["", *(f"{a} and {b}" for a, b in both)], rows


def write_comparison(
    comparison: Comparison,
    folder: str | os.PathLike[str],
    notes: Sequence[str] = (),
    words: ContentFilter | None = None,
) -> dict[str, Any]:
    """Write ``compare.html``, ``pairs.html`` (where runs share pairs), ``compare.json`` and ``plots/``.

    Args:
        comparison: of :func:`compare`.
        folder: where to.
        notes: sentences for the foot.
        words: masks offensive words on both pages.

    Returns:
        What ``compare.json`` holds.
    """
    folder = Path(folder)
    names, summaries = comparison.statistics, comparison.summaries
    document = Document("Masks side by side", " · ".join(names), folder / "plots")
    document.heading("Agreement")
    document.table(*agreement_rows(comparison))
    document.text(
        "Token by token, over pairs that both runs hold. Independent masks agree on zeros as often as chance says; a rank "
        "correlation of 0 is no agreement. Intervals of 95 % over responses."
    )
    add_statistics(document, names, summaries, words)
    for note in notes:
        document.text(note)
    content = {
        "runs": summaries,
        "agreement": [
            {"runs": list(two), "pairs": comparison.shared[two], **own} for two, own in comparison.agreement.items()
        ],
    }
    write_whole(folder / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    document.write(folder / "compare.html")
    if any(comparison.shared.values()):
        page = folder / "pairs.html"
        write_frames(page, comparison.shown, title="The same pairs", subtitle=" · ".join(names), words=words)
    return content
