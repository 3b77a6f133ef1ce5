"""Tables of reasoning benchmarks, of one model or before and after training."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from sparsepo.evaluation.leaderboard import BENCHMARKS, Estimate, TaskResult, average, normalised, raw

Results = Mapping[str, Mapping[str, TaskResult]]  # side (before, after) → task → result
Table = tuple[list[str], list[list[str]]]
AVERAGE = "average of all six"


def report(results: Results) -> dict[str, Any]:
    """Everything as JSON types: benchmarks (normalised), and each task's metrics (raw).

    Args:
        results: of "after", and "before" where it is there.

    Raises:
        ValueError: the two sides are over other documents.
    """
    benchmarks: dict[str, dict[str, Any]] = {}
    scores = {b.name: {side: normalised(b, own) for side, own in results.items()} for b in BENCHMARKS}
    scores[AVERAGE] = {side: average(own) for side, own in results.items()}
    for name, own in scores.items():
        if all(score is not None for score in own.values()):
            benchmarks[name] = _row({side: score for side, score in own.items() if score is not None})
    tasks: dict[str, dict[str, Any]] = {}
    for task, result in results["after"].items():
        before = results.get("before", {}).get(task)
        if before is not None and before.documents != result.documents:
            raise ValueError(f"{task}: before and after are over other documents; run both anew with one set of data.")
        for metric, reported in result.reported.items():
            sides = {side: own[task] for side, own in results.items()}
            if all(metric in side.rows for side in sides.values()):
                found = _row({side: raw(one, metric) for side, one in sides.items()})
            else:  # no mean over documents: lm-eval's own numbers, without a paired difference
                found = {side: dict(one.reported.get(metric, reported)) for side, one in sides.items()}
            documents = len(result.rows[metric]) if metric in result.rows else None
            tasks.setdefault(task, {})[metric] = {**found, "documents": documents}
    about = {task: {"version": one.version, "fewshot": one.fewshot} for task, one in results["after"].items()}
    return {"benchmarks": benchmarks, "tasks": tasks, "versions": about}


def _row(scores: Mapping[str, Estimate]) -> dict[str, Any]:
    found: dict[str, Any] = {side: score.to_json() for side, score in scores.items()}
    if "before" in scores:
        found["difference"] = scores["after"].minus(scores["before"]).to_json()
    return found


def tables(content: Mapping[str, Any]) -> dict[str, Table]:
    """Benchmarks first; then single tasks that belong to none of those shown."""
    found: dict[str, Table] = {}
    shown = set()
    if content["benchmarks"]:
        rows = [[name, *_cells(own, 1)] for name, own in content["benchmarks"].items()]
        found["Open LLM Leaderboard 2, normalised"] = (["benchmark", *_header(content)], rows)
        shown = {task for b in BENCHMARKS if b.name in content["benchmarks"] for task in b.tasks}
    rows = [
        [task, metric, *_cells(own, 4)]
        for task, metrics in content["tasks"].items()
        if task not in shown
        for metric, own in metrics.items()
    ]
    if rows:
        found["tasks, as lm-eval reports them"] = (["task", "metric", *_header(content)], rows)
    return found


def _header(content: Mapping[str, Any]) -> list[str]:
    rows = [
        *content["benchmarks"].values(),
        *(own for metrics in content["tasks"].values() for own in metrics.values()),
    ]
    return ["before", "after", "difference"] if any("before" in row for row in rows) else ["score"]


def _cells(row: Mapping[str, Any], digits: int) -> list[str]:
    sides = ("before", "after", "difference") if "before" in row else ("after",)
    return [_cell(row.get(side), digits) for side in sides]


def _cell(own: Mapping[str, Any] | None, digits: int) -> str:
    if own is None or own["value"] is None:
        return "–"
    error = "" if own["stderr"] is None else f" ± {own['stderr']:.{digits}f}"
    return f"{own['value']:.{digits}f}{error}"


def csv_text(content: Mapping[str, Any]) -> str:
    """A row a number: benchmark or task, metric, side, value, standard error."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", "metric", "side", "value", "stderr"])
    numbered = [(name, "normalised", own) for name, own in content["benchmarks"].items()]
    numbered += [(task, metric, own) for task, metrics in content["tasks"].items() for metric, own in metrics.items()]
    for name, metric, own in numbered:
        for side in ("before", "after", "difference"):
            if isinstance(own.get(side), Mapping):
                values = ["" if own[side][key] is None else own[side][key] for key in ("value", "stderr")]
                writer.writerow([name, metric, side, *values])
    return buffer.getvalue()
