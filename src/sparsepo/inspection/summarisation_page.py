"""Summaries judged by several metrics: tables, figures, CSV and one page, of several models, files and temperatures."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsepo.data.content import ContentFilter, content_notice, shown_text
from sparsepo.evaluation.summaries import METRICS, Scored

from .document import Document, figure_style, with_interval, write_whole
from .figures import errors_of

Table = tuple[list[str], list[list[str]]]
_ARROWS = {"higher": "↑", "lower": "↓", "": ""}
_EXAMPLES = 8  # prompts whose summaries are shown
_SHOWN = 700  # characters of a document
NOTE = (
    "Means over prompts; intervals of 95 % by bootstrap over prompts (2,000 draws). What is measured of single summaries is "
    "averaged over a prompt's samples first. ↑ higher is better, ↓ lower is better."
)


def tables(scored: Sequence[Scored]) -> dict[str, Table]:
    """Title → table, a row a metric. One table of all sets; where several sources come at several temperatures, one a
    temperature, and what has no temperature (a file) stands in each.
    """
    temperatures = [t for t in _temperatures(scored) if t is not None]
    if len(temperatures) < 2 or len({one.source.name for one in scored if one.source.temperature is not None}) < 2:
        return {"summaries": _table(scored, [one.source.label for one in scored])}
    found = {}
    for temperature in temperatures:
        own = [one for one in scored if one.source.temperature in (temperature, None)]
        found[f"summaries at temperature {temperature:g}"] = _table(own, [one.source.name for one in own])
    return found


def _table(scored: Sequence[Scored], names: Sequence[str]) -> Table:
    estimates = [one.estimates() for one in scored]
    rows = [["prompts", *(f"{len(one.source.items):,}" for one in scored)]]
    for name, metric in METRICS.items():
        if any(own.get(name, {}).get("count") for own in estimates):
            label = f"{metric.label} {_ARROWS[metric.better]}".strip()
            rows.append([label, *(with_interval(own.get(name), digits=metric.digits) for own in estimates)])
    return ["", *names], rows


def difference_table(differences: Sequence[Mapping[str, Any]]) -> Table:
    """A row a metric, a column a comparison; the prompts that both have, paired."""
    rows = [
        [metric.label, *(with_interval(own["metrics"].get(name), digits=metric.digits) for own in differences)]
        for name, metric in METRICS.items()
        if any(own["metrics"].get(name, {}).get("count") for own in differences)
    ]
    return ["", *(f"{own['one']} − {own['other']}" for own in differences)], rows


def report(scored: Sequence[Scored], differences: Sequence[Mapping[str, Any]], **about: Any) -> dict[str, Any]:
    """Everything as JSON types.

    Args:
        scored: the sets.
        differences: as :func:`difference_table` takes them.
        about: settings, notes and the like.
    """
    sets = [
        {
            "name": one.source.name,
            "temperature": one.source.temperature,
            "prompts": len(one.source.items),
            "metrics": one.estimates(),
        }
        for one in scored
    ]
    return {**about, "sets": sets, "differences": list(differences)}


def csv_text(content: Mapping[str, Any]) -> str:
    """A row a set and metric: value, interval, number of prompts."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["source", "temperature", "metric", "value", "low", "high", "prompts"])
    for own in content["sets"]:
        for name, estimate in own["metrics"].items():
            numbers = ["" if estimate[key] is None else estimate[key] for key in ("value", "low", "high")]
            temperature = "" if own["temperature"] is None else own["temperature"]
            writer.writerow([own["name"], temperature, name, *numbers, estimate["count"]])
    return buffer.getvalue()


def write_report(
    scored: Sequence[Scored],
    differences: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    words: ContentFilter | None = None,
) -> Path:
    """Write ``summaries.json``, ``summaries.csv``, ``summaries.html`` and ``plots/``; returns the page's path.

    Args:
        scored, differences: as :func:`report` takes them.
        folder: where to.
        notes: sentences below the result.
        settings: for ``summaries.json``.
        words: masks offensive words of the examples.
    """
    folder = Path(folder)
    content = report(scored, differences, settings=dict(settings or {}), notes=list(notes))
    document = Document("Summaries", ", ".join(dict.fromkeys(one.source.name for one in scored)), folder / "plots")
    document.heading("Result")
    found = tables(scored)
    for title, (header, rows) in found.items():
        if len(found) > 1:
            document.subheading(title[0].upper() + title[1:])
        document.table(header, rows)
    for note in (NOTE, *notes):
        document.text(note)
    if differences:
        document.heading("Differences")
        document.table(*difference_table(differences))
        document.text("Paired by prompt, over the prompts that both have.")
    document.heading("Figures")
    _figures(document, scored)
    document.heading("Definitions")
    shown = [metric for metric in METRICS.values() if any(metric.name in one.values for one in scored)]
    document.table(["metric", "what it is"], [[m.label, m.definition] for m in shown], texts=(0, 1))
    _examples(document, scored, words)
    write_whole(folder / "summaries.json", json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n")
    write_whole(folder / "summaries.csv", csv_text(content))
    return document.write(folder / "summaries.html")


def _temperatures(scored: Sequence[Scored]) -> list[float | None]:
    found = {one.source.temperature for one in scored}
    return sorted(found, key=lambda value: (value is not None, value or 0.0))


def _figures(document: Document, scored: Sequence[Scored]) -> None:
    estimates = [one.estimates() for one in scored]
    swept = [t for t in _temperatures(scored) if t is not None]
    with figure_style() as pyplot:
        if len(swept) > 1:
            if any(own.get("faithfulness", {}).get("count") for own in estimates):
                caption = (
                    "Faithfulness against diversity; each point a temperature; up and to the right is better on both."
                )
                document.figure(_trade_off(pyplot, scored, estimates), "trade_off", caption)
            for name in _shown(estimates):
                caption = f"{METRICS[name].label} by temperature, with 95 % intervals."
                document.figure(_by_temperature(pyplot, scored, estimates, name), f"temperature_{name}", caption)
        else:
            document.figure(_bars(pyplot, scored, estimates), "metrics", "Each metric, with 95 % intervals.")


def _shown(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics that some source has; none that is zero everywhere (no empty summaries, say)."""
    return [name for name in METRICS if any(own.get(name, {}).get("value") for own in estimates)]


def _lines(scored: Sequence[Scored], estimates: Sequence[Mapping[str, Any]], *names: str) -> dict[str, list[Any]]:
    """Source → (temperature, one estimate a name), in order of temperature; sources without one stand at None."""
    found: dict[str, list[Any]] = {}
    for one, own in zip(scored, estimates, strict=True):
        if all(own.get(name, {}).get("count") for name in names):
            found.setdefault(one.source.name, []).append((one.source.temperature, *(own[name] for name in names)))
    return {name: sorted(rows, key=lambda row: row[0] or 0.0) for name, rows in found.items()}


def _by_temperature(pyplot: Any, scored: Sequence[Scored], estimates: Sequence[Mapping[str, Any]], name: str) -> Any:
    figure, axes = pyplot.subplots(figsize=(4.2, 2.9))
    for source, rows in _lines(scored, estimates, name).items():
        values, errors = errors_of([row[1] for row in rows])
        if rows[0][0] is None:  # a file: one number for every temperature
            axes.axhline(values[0], linestyle="--", linewidth=1, color="#888888", label=source)
            continue
        axes.errorbar([row[0] for row in rows], values, yerr=errors, marker="o", markersize=4, capsize=2, label=source)
    axes.set_xlabel("temperature")
    axes.set_ylabel(METRICS[name].label)
    axes.legend(fontsize=8)
    return figure


def _trade_off(pyplot: Any, scored: Sequence[Scored], estimates: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(4.6, 3.3))
    for source, rows in _lines(scored, estimates, "self_bleu", "faithfulness").items():
        x = [100 - row[1]["value"] for row in rows]
        values, errors = errors_of([row[2] for row in rows])
        axes.errorbar(x, values, yerr=errors, marker="o", markersize=4, capsize=2, label=source)
        for place, row in enumerate(rows):
            if row[0] is not None:
                axes.annotate(
                    f"{row[0]:g}", (x[place], values[place]), xytext=(4, 4), textcoords="offset points", fontsize=7.5
                )
    axes.set_xlabel("diversity: 100 − self-BLEU")
    axes.set_ylabel(METRICS["faithfulness"].label)
    axes.legend(fontsize=8)
    return figure


def _bars(pyplot: Any, scored: Sequence[Scored], estimates: Sequence[Mapping[str, Any]]) -> Any:
    names = _shown(estimates)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (3.1 * columns, rows * (0.9 + 0.3 * len(scored)))
    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        metric = METRICS[names[place]]
        kept = [
            (one.source.label, own[metric.name])
            for one, own in zip(scored, estimates, strict=True)
            if own.get(metric.name, {}).get("count")
        ]
        values, errors = errors_of([own for _, own in kept])
        axes.barh(range(len(kept)), values, xerr=errors, ecolor="#888888")
        axes.set_yticks(range(len(kept)), [label for label, _ in kept])
        axes.set_ylim(len(scored) - 0.4, -0.6)  # bars as high as in the other panels; the first on top
        axes.set_title(f"{metric.label} {_ARROWS[metric.better]}", fontsize=9.5)
        axes.grid(axis="y", visible=False)
    return figure


def _examples(document: Document, scored: Sequence[Scored], words: ContentFilter | None) -> None:
    """Summaries of the first prompts, one below the other."""
    document.heading("Examples")
    document.text("The first prompts of the first source, with the first sample of each source.")
    examples = _example_rows(scored)
    if notice := content_notice((text for rows in examples for _, text in rows), words):
        document.text(notice)
    for rows in examples:
        shown = [[label, shown_text(text, words)] for label, text in rows]
        cells = [[label, _cut(text)] for label, text in shown]
        document.table(["", "text"], cells, texts=(0, 1), folded=_cut(shown[0][1], 90))


def _example_rows(scored: Sequence[Scored]) -> list[list[list[str]]]:
    """By prompt: its document, its references and a summary of each source."""
    examples = []
    by_prompt = [{item.prompt: item for item in one.source.items} for one in scored]
    for item in scored[0].source.items[:_EXAMPLES]:
        rows = [["document", item.document], *(["reference", text] for text in item.references)]
        for one, own in zip(scored, by_prompt, strict=True):
            if item.prompt in own:
                rows.append([one.source.label, own[item.prompt].summaries[0]])
        examples.append(rows)
    return examples


def _cut(text: str, length: int = _SHOWN) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
