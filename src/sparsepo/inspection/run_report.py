"""The page that a training run ends with: settings, curves, example pairs, data check, versions, the command."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsepo.data.content import ContentFilter

from .document import Document, figure_style, number
from .masked_words import masked, notice_of
from .records import PairRecord
from .terminal import printable

MAIN = (
    *(
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
        "kl/chosen",
        "kl/rejected",
    ),
    *("kl_masked/chosen", "kl_masked/rejected", "mask/reward/mean", "mask/reward/sparsity", "mask/kl/mean"),
    *("mask/kl/sparsity", "mask/effective_beta"),
)
REPORT, PAIRS = "report.html", "pairs.html"
# what is drawn together: title → names in the log
CURVES: dict[str, dict[str, str]] = {
    "Loss": {"loss": "training", "eval_loss": "held out"},
    "Reward accuracy": {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"},
    "Reward margin": {"rewards/margins": "training", "eval_rewards/margins": "held out"},
    "KL(π_ref ‖ π) per response, nats": {
        "kl/chosen": "chosen",
        "kl/rejected": "rejected",
        "kl_masked/chosen": "chosen, as masked",
        "kl_masked/rejected": "rejected, as masked",
    },
    "Exact zeros in the masks": {
        "mask/reward/sparsity": "reward mask",
        "mask/kl/sparsity": "KL mask",
        "eval_mask/reward/sparsity": "reward mask, held out",
    },
    "Mean mask": {
        "mask/reward/mean": "reward mask",
        "mask/kl/mean": "KL mask",
        "eval_mask/reward/mean": "reward mask, held out",
    },
}


def write_report(
    output_dir: str | os.PathLike[str],
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    records: Sequence[PairRecord] = (),
    *,
    health: Sequence[str] = (),
    words: ContentFilter | None = None,
) -> Path:
    """Write ``report.html`` (and with pairs ``pairs.html``); returns the report's path.

    Args:
        output_dir: the run's folder.
        summary: what ``train_summary.json`` holds.
        history: the trainer's ``state.log_history``.
        records: example pairs.
        health: what the health monitor found.
        words: masks offensive words of the pairs.
    """
    folder = Path(output_dir)
    objective = summary["objective"]["name"]
    document = Document("Training report", f"{objective} · {summary['model']}", folder / "report_plots")
    document.heading("Result")
    document.text(f"{summary['steps']} steps in {summary['seconds']:.0f} s. Saved in this folder.")
    _add_metrics(document, summary["metrics"])
    for finding in health:
        document.text(f"Mask health: {finding}")
    _add_curves(document, history)
    if records:
        _add_pairs(document, records, folder, objective, words)
    document.heading("Data")
    for report in summary["data"]:
        _add_check(document, report)
    document.heading("To repeat it")
    document.pre(summary["command"])
    document.table(["", "version"], [[name, str(version)] for name, version in summary["versions"].items()])
    document.heading("Settings")
    _add_settings(document, summary)
    return document.write(folder / REPORT)


def _add_metrics(document: Document, metrics: Mapping[str, Mapping[str, float]]) -> None:
    names = sorted({name for own in metrics.values() for name in own})
    main = [name for name in names if name in MAIN]
    for chosen, folded in ((main, ""), ([name for name in names if name not in main], "Other numbers")):
        if chosen:
            rows = [[name, *(_shown(own.get(name)) for own in metrics.values())] for name in chosen]
            document.table(["", *metrics], rows, folded=folded)


def _shown(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _add_curves(document: Document, history: Sequence[Mapping[str, Any]]) -> None:
    document.heading("Curves")
    with figure_style() as pyplot:
        for title, series in CURVES.items():
            drawn = {label: own for name, label in series.items() if (own := points(history, name))}
            if not drawn:
                continue
            figure, axes = pyplot.subplots(figsize=(5.4, 2.8))
            for label, (steps, values) in drawn.items():
                held_out = "held out" in label
                axes.plot(steps, values, "o--" if held_out or len(steps) == 1 else "-", markersize=4, label=label)
            axes.set_xlabel("step")
            axes.set_title(title, fontsize=9.5)
            axes.legend(fontsize=8)
            name = "".join(c if c.isascii() and c.isalnum() else "_" for c in title.lower()).strip("_")
            document.figure(figure, name, f"{title} over training.")


def points(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]] | None:
    """Steps and finite values of one logged number; None where it was never logged."""
    found = [
        (int(entry["step"]), float(entry[name]))
        for entry in history
        if isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name]) and "step" in entry
    ]
    return ([step for step, _ in found], [value for _, value in found]) if found else None


def _add_pairs(
    document: Document, records: Sequence[PairRecord], folder: Path, objective: str, words: ContentFilter | None
) -> None:
    from .page import write_page

    write_page(records, folder / PAIRS, title="Example pairs", subtitle=objective, words=words)
    document.heading("Example pairs")
    if notice := notice_of(records, words):
        document.text(notice)
    document.text(f"{PAIRS} in this folder shows them token by token; masks.html, where it is, how they came about.")
    rows = []
    for record in masked(records, words):
        zeros = record.zeros()
        texts = (record.prompt[-60:], record.chosen.text[:80], record.rejected.text[:80])
        cells = [printable(text).replace("\n", "") for text in texts]
        shown = "–" if zeros is None else f"{100 * zeros:.0f} %"
        rows.append([str(record.number), *cells, number(record.margin), shown])
    document.table(["pair", "prompt (end)", "chosen", "rejected", "margin", "zeros"], rows, texts=(0, 1, 2, 3))


def _add_check(document: Document, report: Mapping[str, Any]) -> None:
    """What the check of one data set found; :meth:`sparsepo.data.report.CheckReport.to_dict`."""
    document.subheading(report["name"])
    document.text(
        f"{report['format']}; {report['rows']:,} rows, {report['kept']:,} kept, {report['dropped']:,} dropped."
    )
    if report["findings"]:
        rows = []
        for finding in report["findings"]:
            example = finding["examples"][0]
            where = printable(f"row {example['row']}, {example['field']}: {example['detail']}")
            rows.append([finding["what"], finding["action"], where, f"{finding['rows']:,}"])
        document.table(["found", "done", "first example (rows from 0)", "rows"], rows, texts=(0, 1, 2))
    if report["tokens"]:
        document.table(["tokens", ""], [[name.replace("_", " "), _number(v)] for name, v in report["tokens"].items()])
    for note in report["notes"]:
        document.text(note)


def _number(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _add_settings(document: Document, summary: Mapping[str, Any]) -> None:
    given = set(summary["given"])
    settings = {
        name: value for name, value in summary["settings"].items() if "token" not in name or name == "num_tokens"
    }
    own = {"objective": summary["objective"], "mask": summary["mask"], "reference": summary["reference"]}
    document.table(["", "value"], [[name, _plain(value)] for name, value in own.items()], texts=(0, 1))
    rows = [[name, _plain(settings[name])] for name in sorted(given & set(settings))]
    document.table(["given", "value"], rows, texts=(0, 1))
    others = [[name, _plain(value)] for name, value in settings.items() if name not in given and value is not None]
    document.table(["left as it was", "value"], others, texts=(0, 1), folded="All other settings")


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, indent=None if not isinstance(value, dict) else 1)
