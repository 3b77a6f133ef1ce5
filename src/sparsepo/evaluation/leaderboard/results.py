"""What one task gave, document by document, as it is kept in files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TaskResult:
    """Results of one task of lm-eval.

    Args:
        task: its name.
        version, fewshot: of the task, as lm-eval says.
        documents: fingerprint of the documents, in order.
        rows: metric → one (sum, count) a document: (value, 1), or for lists of judgements their sum and number. Metrics
            that are no means over documents have none.
        reported: metric → value and standard error as lm-eval computes them; None where it gives none.
    """

    task: str
    version: Any
    fewshot: int | None
    documents: str
    rows: Mapping[str, Sequence[Sequence[float]]]
    reported: Mapping[str, Mapping[str, float | None]]

    def arrays(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums and counts of a metric, (N,) each.

        Raises:
            ValueError: the task has no such metric.
        """
        if metric not in self.rows:
            raise ValueError(f"{self.task} gave no {metric}; it has {', '.join(self.rows) or 'no metric by document'}.")
        own = np.array(self.rows[metric], dtype=np.float64).reshape(-1, 2)
        return own[:, 0], own[:, 1]

    def to_json(self) -> dict[str, Any]:
        """As JSON types; ``TaskResult(**…)`` is the way back."""
        return asdict(self)


def from_lm_eval(task: str, output: Mapping[str, Any]) -> TaskResult:
    """One task's part of what ``lm_eval.simple_evaluate`` gave with samples."""
    samples = sorted(output["samples"][task], key=lambda sample: sample["doc_id"])
    reported = _reported(output["results"][task])
    rows: dict[str, list[list[float]]] = {}
    for name in reported:
        metric, _, filtered = name.partition(",")
        found = [_row(one.get(metric)) for one in samples if one["filter"] == (filtered or "none")]
        kept = [row for row in found if row is not None]
        total = sum(row[1] for row in kept)
        value = reported[name]["value"]
        is_mean = value is not None and total and abs(sum(row[0] for row in kept) / total - value) < 1e-9
        if len(kept) == len(found) and is_mean:
            rows[_short(name)] = kept
    first = samples[0]["filter"] if samples else None
    hashes = "".join(sample["doc_hash"] for sample in samples if sample["filter"] == first)
    return TaskResult(
        task=task,
        version=output["versions"].get(task),
        fewshot=output["n-shot"].get(task),
        documents=hashlib.blake2b(hashes.encode(), digest_size=8).hexdigest(),
        rows=rows,
        reported={_short(name): own for name, own in reported.items()},
    )


def _reported(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """``metric,filter`` → value and standard error."""
    found = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = results.get(f"{metric}_stderr,{filtered}")
        found[key] = {"value": float(value), "stderr": float(error) if isinstance(error, (int, float)) else None}
    return found


def _short(name: str) -> str:
    """Without lm-eval's name for "no filter"."""
    return name.removesuffix(",none")


def _row(value: Any) -> list[float] | None:
    """A document's (sum, count)."""
    if isinstance(value, (bool, int, float)):
        return [float(value), 1.0]
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (bool, int, float)) for one in value):
        return [float(sum(value)), float(len(value))]
    return None
