"""Mask statistics for readers: tables, plots and one page, of one group or of several side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsepo.data.content import ContentFilter

from . import figures
from .document import Document, figure_style, number, percent, with_interval, write_whole
from .figures import MASK_NAMES, quoted
from .masked_words import masked_types, notice_of_types
from .statistics import MASKS, Statistics

_ORDERED = {
    "position": "token of the response",
    "tenth": "place in the response",
    "frequency": "occurrences of the token type in these responses",
}
_NAMED = {"class": "token class", "code": "what the code says", "speech": "part of speech"}
RESPONSES = {
    "log_ratio": "rank correlation with |log-ratio|, within responses",
    "kl": "rank correlation with KL, within responses",
    "overlap": "token types among the largest fifth of both responses (Jaccard)",
    "overlap of all": "token types in both responses (Jaccard), for comparison",
    "chosen minus rejected": "mean mask, chosen minus rejected",
}


def write_summary(
    statistics: Mapping[str, Statistics],
    folder: str | os.PathLike[str],
    *,
    title: str = "What the masks chose",
    subtitle: str = "",
    notes: Sequence[str] = (),
    words: ContentFilter | None = None,
) -> dict[str, Any]:
    """Write ``summary.json``, ``summary.html`` and ``plots/``.

    Args:
        statistics: by group; "" for a single one.
        folder: where to.
        title, subtitle, notes: of the page.
        words: masks offensive token types on it.

    Returns:
        What ``summary.json`` holds: group → statistics.
    """
    folder = Path(folder)
    summaries = {name: own.summary() for name, own in statistics.items()}
    document = Document(title, subtitle, folder / "plots")
    add_statistics(document, statistics, summaries, words)
    for note in notes:
        document.text(note)
    write_whole(folder / "summary.json", json.dumps(summaries, indent=1, allow_nan=False) + "\n")
    document.write(folder / "summary.html")
    return summaries


def add_statistics(
    document: Document,
    statistics: Mapping[str, Statistics],
    summaries: Mapping[str, Mapping[str, Any]],
    words: ContentFilter | None = None,
) -> None:
    """The parts of the page; ``words`` masks token types."""
    notice = notice_of_types(summaries, words)
    summaries = masked_types(summaries, words)
    document.heading("Overview")
    document.table(["", *map(_column, summaries)], overview_rows(summaries))
    document.text(
        "Shares and means are over response tokens; intervals of 95 % take pairs as independent, and not tokens; those of "
        "frequencies take token types so."
    )
    if all(own["common"] for own in summaries.values()):
        document.text("Reward and KL mask are the same numbers (a common mask): shown once.")
    if notice:
        document.text(notice)
    samples = {name: own.sample() for name, own in statistics.items()}
    for column, mask in enumerate(MASKS):
        having = {name: own for name, own in summaries.items() if mask in own["masks"]}
        if having:
            _add_mask(document, having, {name: samples[name] for name in having}, mask, column)


def overview_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The first table: a row a number, a column a group."""
    own = list(summaries.values())
    rows = [["pairs", *(f"{s['pairs']:,}" for s in own)], ["response tokens", *(f"{s['tokens']:,}" for s in own)]]
    for mask in MASKS:
        if not any(mask in s["masks"] for s in own):
            continue
        found = [s["masks"].get(mask) for s in own]
        name = MASK_NAMES[mask]
        rows.append([f"{name}: exact zeros", *(with_interval(f and f["zeros"], share=True) for f in found)])
        rows.append([f"{name}: mean", *(with_interval(f and f["mean"]) for f in found)])
        for side in ("chosen", "rejected"):
            cells = [with_interval(f["side"][side]["mean"]) if f and side in f["side"] else "–" for f in found]
            rows.append([f"{name}: mean, {side}", *cells])
        for key, text in RESPONSES.items():
            if any(f and key in f["responses"] for f in found):
                cells = [with_interval(f["responses"].get(key)) if f else "–" for f in found]
                rows.append([f"{name}: {text}", *cells])
    if any(s["agreement"] and not s["agreement"]["identical"] for s in own):
        agreements = [s["agreement"] for s in own]
        rows.append(["reward and KL mask: correlation", *(number(a and a["correlation"]) for a in agreements)])
        for state in ("both", "reward only", "KL only", "neither"):
            cells = [percent(a["shares"][state]["value"]) if a else "–" for a in agreements]
            rows.append([f"tokens kept by: {state}", *cells])
    return rows


def _add_mask(
    document: Document,
    summaries: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Any],
    mask: str,
    column: int,
) -> None:
    name = MASK_NAMES[mask]
    document.heading(name[0].upper() + name[1:])
    with figure_style() as pyplot:
        document.figure(
            figures.histogram(pyplot, samples, summaries, column), f"{mask}_histogram", f"Values of the {name}."
        )
        for dimension, text in {**_ORDERED, **_NAMED}.items():
            if not any(dimension in own["masks"][mask] for own in summaries.values()):
                continue
            document.subheading(f"By {text}")
            for statistic, what in (("mean", f"Mean {name}"), ("zeros", "Share of exact zeros")):
                made = (
                    figures.by_label(pyplot, summaries, mask, dimension, statistic, text)
                    if dimension in _ORDERED
                    else figures.bars(pyplot, summaries, mask, dimension, statistic)
                )
                document.figure(made, f"{mask}_{dimension}_{statistic}", f"{what} by {text}, with 95 % intervals.")
            document.table(*_dimension_table(summaries, mask, dimension), folded="The numbers")
        if any("log_ratio" in own["masks"][mask]["responses"] for own in summaries.values()):
            document.subheading("Against the policy's log-ratio")
            caption = f"Mean {name} in tenths of the tokens by the size of their log-ratio."
            document.figure(figures.against_log_ratio(pyplot, samples, column), f"{mask}_log_ratio", caption)
        for group, own in summaries.items():
            document.subheading(f"Token types{f': {group}' if group else ''}")
            file = f"{mask}_types{f'_{safe_name(group)}' if group else ''}"
            caption = "Token types by their mean mask, those that occur five times or more; · is a space at the edge."
            document.figure(figures.types(pyplot, own, mask), file, caption)
            document.table(*type_table(own, mask), mono=True, folded="The numbers")


def _dimension_table(
    summaries: Mapping[str, Mapping[str, Any]], mask: str, dimension: str
) -> tuple[list[str], list[list[str]]]:
    labels = figures.labels_of(summaries, mask, dimension)
    header, rows = [dimension], [[label] for label in labels]
    for name, own in summaries.items():
        header += [f"{name} {part}".strip() for part in ("tokens", "mean", "zeros")]
        for row, label in zip(rows, labels, strict=True):
            found = own["masks"][mask].get(dimension, {}).get(label)
            if found is None:
                row += ["0", "–", "–"]
            else:
                row += [f"{found['mean']['count']:,}", with_interval(found["mean"])]
                row.append(with_interval(found["zeros"], share=True))
    return header, rows


def type_table(summary: Mapping[str, Any], mask: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: most weighted types first, then the least weighted."""
    rows = [
        [
            quoted(row["piece"]),
            kind,
            str(row["id"]),
            f"{row['count']:,}",
            with_interval(dict(row)),
            percent(row["zeros"]),
        ]
        for kind, own in summary["masks"][mask]["types"].items()
        for row in own
    ]
    return ["token", "weighted", "id", "count", "mean mask", "zeros"], rows


def safe_name(text: str) -> str:
    """A group's name as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)[:60].lstrip(".") or "_"


def _column(name: str) -> str:
    return name or "all"
