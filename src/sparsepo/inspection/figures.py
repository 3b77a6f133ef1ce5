"""Figures of mask statistics: several groups or runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .document import COLOURS
from .terminal import printable

Summaries = Mapping[str, Mapping[str, Any]]  # name → what Statistics.summary gives
MASK_NAMES = {"reward_mask": "reward mask", "kl_mask": "KL mask"}
_BINS = 40


def errors_of(own: Sequence[Mapping[str, Any]]) -> tuple[list[float], NDArray[np.float64]]:
    """Values of estimates and their intervals as matplotlib takes them, (2, n); 0 where there is none."""
    values = [row["value"] for row in own]
    low = [row["value"] - row["low"] if row["low"] is not None else 0.0 for row in own]
    high = [row["high"] - row["value"] if row["high"] is not None else 0.0 for row in own]
    return values, np.maximum(np.array([low, high]), 0.0)


def by_label(pyplot: Any, summaries: Summaries, mask: str, dimension: str, statistic: str, xlabel: str) -> Any:
    """Lines with intervals over labels that have an order (positions, frequencies), one a group."""
    labels = labels_of(summaries, mask, dimension)
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0))
    for name, summary in summaries.items():
        own = _dimension(summary, mask, dimension)
        places = [place for place, label in enumerate(labels) if label in own]
        if places:
            values, errors = errors_of([own[labels[place]][statistic] for place in places])
            axes.errorbar(places, values, yerr=errors, marker="o", markersize=3.5, linewidth=1.3, label=name or None)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(_statistic(mask, statistic))
    _finish(axes, summaries, statistic)
    return figure


def bars(pyplot: Any, summaries: Summaries, mask: str, dimension: str, statistic: str) -> Any:
    """Horizontal bars with intervals, largest first, one colour a group."""
    labels = labels_of(summaries, mask, dimension)
    first = _dimension(next(iter(summaries.values())), mask, dimension)
    labels.sort(key=lambda label: first[label][statistic]["value"] if label in first else -1.0)
    figure, axes = pyplot.subplots(figsize=(5.2, 0.9 + 0.26 * len(labels) * max(1, 0.6 * len(summaries))))
    height = 0.8 / len(summaries)
    for index, (name, summary) in enumerate(summaries.items()):
        own = _dimension(summary, mask, dimension)
        places = [place for place, label in enumerate(labels) if label in own]
        if places:
            values, errors = errors_of([own[labels[place]][statistic] for place in places])
            offset = 0.4 - height * (index + 0.5)
            axes.barh([p + offset for p in places], values, height, xerr=errors, label=name or None, ecolor="#888888")
    axes.set_yticks(range(len(labels)), [printable(label) for label in labels])
    axes.set_xlabel(_statistic(mask, statistic))
    axes.grid(axis="y", visible=False)
    _finish(axes, summaries, None)
    return figure


def types(pyplot: Any, summary: Mapping[str, Any], mask: str) -> Any:
    """The most and least weighted token types of one group."""
    rows = summary["masks"][mask]["types"]
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 0.8 + 0.24 * max(len(rows["most"]), len(rows["least"]), 1)))
    for axes, (kind, own), colour in zip(panels, rows.items(), COLOURS, strict=False):
        values, errors = errors_of(own)
        axes.barh(range(len(own)), values, xerr=errors, color=colour, ecolor="#888888")
        axes.set_yticks(range(len(own)), [f"{quoted(row['piece'])}  ×{row['count']}" for row in own])
        axes.invert_yaxis()
        axes.set_title(f"{kind} weighted", fontsize=9.5)
        axes.set_xlabel(_statistic(mask, "mean"))
        axes.grid(axis="y", visible=False)
    return figure


def histogram(pyplot: Any, samples: Mapping[str, NDArray[np.float64]], summaries: Summaries, column: int) -> Any:
    """Of mask values above zero; the share of exact zeros stands in the legend."""
    mask = ("reward_mask", "kl_mask")[column]
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0))
    kept = {
        name: own[:, column][own[:, column] > 0] for name, own in samples.items() if mask in summaries[name]["masks"]
    }
    top = max((float(np.quantile(own, 0.995)) for own in kept.values() if len(own)), default=1.0) or 1.0
    for name, own in kept.items():
        zeros = summaries[name]["masks"][mask]["zeros"]["value"]
        label = f"{name}: {100 * zeros:.0f} % exactly zero".removeprefix(": ")
        weights = np.full(len(own), 1 / max(len(samples[name]), 1))
        axes.hist(
            np.minimum(own, top),
            bins=_BINS,
            range=(0, top),
            weights=weights,
            histtype="stepfilled",
            alpha=0.45,
            label=label,
        )
    axes.set_xlabel(f"{MASK_NAMES[mask]} above zero")
    axes.set_ylabel("share of tokens")
    axes.legend(fontsize=8)
    return figure


def against_log_ratio(pyplot: Any, samples: Mapping[str, NDArray[np.float64]], column: int) -> Any:
    """Mean mask by tenths of |log-ratio|: does the mask follow what training moved?"""
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0))
    for name, own in samples.items():
        rows = own[np.isfinite(own[:, [column, 2]]).all(axis=1)]
        if len(rows) < 20 or rows[:, 2].max() == 0:
            continue
        order = np.argsort(rows[:, 2], kind="stable")
        parts = np.array_split(rows[order], 10)
        axes.plot(
            [part[:, 2].mean() for part in parts],
            [part[:, column].mean() for part in parts],
            "o-",
            ms=3.5,
            label=name or None,
        )
    axes.set_xlabel("|log π − log π_ref| of the token (nats), in tenths of the tokens")
    axes.set_ylabel(_statistic(("reward_mask", "kl_mask")[column], "mean"))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def quoted(piece: str) -> str:
    """A token's text for a plot or table: spaces seen, nothing that moves the line."""
    shown = printable(piece).replace("\n", "").replace("\t", "")
    return shown.replace(" ", "·") if shown.strip() != shown or not shown else shown


def _dimension(summary: Mapping[str, Any], mask: str, dimension: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = summary["masks"].get(mask, {}).get(dimension, {})
    return found


def labels_of(summaries: Summaries, mask: str, dimension: str) -> list[str]:
    """Every label of any group; ordered dimensions come in order already."""
    from .statistics import FREQUENCIES, POSITIONS, TENTHS

    found = dict.fromkeys(label for own in summaries.values() for label in _dimension(own, mask, dimension))
    order = {"position": POSITIONS, "tenth": TENTHS, "frequency": FREQUENCIES}.get(dimension)
    return list(found) if order is None else [label for label in order if label in found]


def _statistic(mask: str, statistic: str) -> str:
    return f"mean {MASK_NAMES[mask]}" if statistic == "mean" else f"exact zeros in the {MASK_NAMES[mask]}"


def _finish(axes: Any, summaries: Summaries, statistic: str | None) -> None:
    if statistic == "zeros":
        axes.set_ylim(-0.03, 1.03)
    if any(summaries) and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
