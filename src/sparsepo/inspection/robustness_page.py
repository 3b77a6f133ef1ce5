"""Tables, plot and page of noise and attacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsepo.data.content import ContentFilter, content_notice, shown_text

from .document import Document, figure_style, percent, with_interval
from .figures import errors_of

_COLUMNS = {
    "words_changed": "words changed",
    "accuracy": "reward accuracy",
    "accuracy_difference": "difference from clean",
    "flipped": "pairs whose order changed",
    "flips": "right pairs now wrong",
    "margin": "margin",
    "rejected_reward_change": "change of the rejected reward",
    "mask": "masks: rank correlation with clean, word by word",
    "zeros": "zeros in the reward mask",
}
BRIEF = ("accuracy", "flips", "flipped", "mask")
_SHARES = ("accuracy", "accuracy_difference", "flipped", "flips", "zeros")
_NOTES = {
    "noise": "Noise is in both responses; the prompt is as it was. Ties count as wrong. 95 % intervals over pairs, of masks "
    "over responses. How far a reward should hold under noise depends on the noise: neutral synonyms should change nothing, "
    "dropped words may change what is said.",
    "adversarial": "Words are put between the rejected response's own. They were chosen on half of the pairs, tried on "
    "the other. What large masks do beyond any words is the difference from the control. 95 % intervals over pairs.",
}


def table(found: Mapping[str, Mapping[str, Any]], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a row a condition; columns that no condition has are left out, with ``brief`` all but three."""
    columns = [
        name for name in (BRIEF if brief else _COLUMNS) if any(own.get(name) is not None for own in found.values())
    ]
    rows = []
    for key, own in found.items():
        cells = []
        for name in columns:
            value = own.get(name)
            cells.append(percent(value) if name == "words_changed" else with_interval(value, share=name in _SHARES))
        rows.append([key.replace("_", " ").replace("-", " "), *cells])
    return ["condition", *(_COLUMNS[name] for name in columns)], rows


def write_page(
    check: str,
    found: Mapping[str, Mapping[str, Any]],
    lexicon: Mapping[str, Sequence[str]],
    folder: str | os.PathLike[str],
    model: str,
    words: ContentFilter | None = None,
) -> Path:
    """Write ``robustness.html`` and ``plots/``; returns the page's path.

    Args:
        check: ``noise`` or ``adversarial``.
        found: condition → its numbers.
        lexicon: kind → the words that were inserted.
        folder: where to.
        model: its name.
        words: masks offensive ones among the inserted words.
    """
    folder = Path(folder)
    title = {"noise": "Robustness to noise", "adversarial": "Inserted words"}[check]
    document = Document(title, model, folder / "plots")
    document.heading("Result")
    document.table(*table(found))
    document.text(_NOTES[check])
    with figure_style() as pyplot:
        for name in ("accuracy", "mask", "flips"):
            if any(own.get(name) for key, own in found.items() if key != "none"):
                document.figure(
                    _figure(pyplot, found, name), name, f"{_COLUMNS[name]}, with 95 % intervals.".capitalize()
                )
    if lexicon:
        document.heading("The words")
        rows = [[kind, ", ".join(own)] for kind, own in lexicon.items()]
        if notice := content_notice((word for own in lexicon.values() for word in own), words):
            document.text(notice)
        rows = [[kind, shown_text(text, words)] for kind, text in rows]
        document.table(["kind", "words"], rows, texts=(0, 1))
    return document.write(folder / "robustness.html")


def _figure(pyplot: Any, found: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    figure, axes = pyplot.subplots(figsize=(5.6, 3.1))
    series: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for key, own in found.items():
        kind, _, amount = key.rpartition("-")
        if kind and own.get(name):
            series.setdefault(kind.replace("_", " "), []).append((float(amount), own[name]))
    for label, points in series.items():
        values, errors = errors_of([own for _, own in points])
        axes.errorbar([x for x, _ in points], values, yerr=errors, marker="o", markersize=4, capsize=2, label=label)
    if name in found.get("none", {}):
        axes.axhline(found["none"][name]["value"], color="#888888", linewidth=0.9, linestyle="--", label="clean text")
    axes.set_xlabel("share of words, or words inserted")
    axes.set_ylabel(_COLUMNS[name].split(":")[0] if name != "mask" else "rank correlation of masks")
    axes.legend(fontsize=8)
    return figure
