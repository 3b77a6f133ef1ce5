"""The frontier of an experiment's runs: reward at matched KL with intervals and tests, from the samples that they kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsepo.evaluation.frontier_points import Point
from sparsepo.evaluation.frontier_summary import MeasuredRun, SummarySettings, summarise

from .folder import ExperimentFolder
from .jobs import read_lines
from .recipe import SFT
from .stages import Plan, Stage


def frontier_of(plan: Plan, folder: ExperimentFolder) -> dict[str, Any] | None:
    """What :func:`sparsepo.evaluation.frontier_summary.summarise` says of the runs that are done.

    None where there is nothing to compare: no run beside the start, or a seed whose start is missing.
    """
    points = {
        (stage.row["method"], stage.row["beta"], stage.row["seed"]): _point(stage, plan, folder)
        for stage in plan.runs()
        if folder.is_done(plan.keys[stage.name])
    }
    references = {str(seed): point for (method, _, seed), point in points.items() if method == SFT}
    runs = [
        MeasuredRun(method, beta, seed, "", str(seed), [1], [point], [""])
        for (method, beta, seed), point in points.items()
        if method != SFT and str(seed) in references
    ]
    if not runs:
        return None
    own_prompts = plan.task == "playground"  # its prompts are drawn by seed; elsewhere they are those of the data stage
    found = summarise(runs, references, SummarySettings(shared_prompts=not own_prompts))
    return {name: found[name] for name in ("kl", "max_kl", "methods", "comparison", "notes")} | {"front": _named(found)}


def _point(stage: Stage, plan: Plan, folder: ExperimentFolder) -> Point:
    rows = list(read_lines(folder.stage(plan.keys[stage.name]) / "samples.jsonl"))
    shape = (-1, stage.settings["samples"])

    def values(name: str) -> np.ndarray[Any, Any]:
        return np.array([row[name] for row in rows], dtype=np.float64).reshape(shape)

    return Point(
        values("reward"),
        {"exact": values("sequence_kl"), "monte_carlo": values("monte_carlo_kl")},
        values("tokens"),
        values("finished").astype(np.bool_),
    )


def _named(found: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """β on each method's Pareto front, by KL."""
    return {name: [found["points"][place]["beta"] for place in own["front"]] for name, own in found["methods"].items()}


def matched_rows(frontier: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table: the largest reward within each KL budget, and over all budgets, beside the baseline."""
    comparison = frontier["comparison"]
    header = ["KL at most", "method", "reward", f"minus {comparison['baseline']}", "p", "p, Holm"]
    parts = [(f"{own['budget']:g} nats", own["methods"]) for own in comparison["within"]]
    if comparison["area"] is not None:
        parts.append((f"mean up to {frontier['max_kl']:.2g}", comparison["area"]))
    rows = []
    for budget, methods in parts:
        for name, own in methods.items():
            is_base = name == comparison["baseline"]
            tests = ["–" if is_base else f"{own[key]:.3f}" for key in ("p_value", "p_adjusted")]
            rows.append(
                [budget, name, _interval(own["reward"]), "–" if is_base else _interval(own["difference"]), *tests]
            )
    return header, rows


def _interval(own: Mapping[str, float]) -> str:
    return f"{own['value']:.3f} [{own['low']:.3f}, {own['high']:.3f}]"
