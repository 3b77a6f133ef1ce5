"""From measured points to what a frontier says: means with intervals, fronts, areas, reward at matched KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .frontier import Comparison, Comparisons, Curve, Interval, bootstrap_mean, compare, pareto_front
from .frontier_points import SIDES, Array, Point
from .tilting import TiltedReference

LEAST_OPTIMUM = 16  # samples a prompt of the reference below which its optimum is not worth showing


@dataclass(frozen=True)
class MeasuredRun:
    """One training run: its points in the order of training.

    Args:
        method, beta, seed: what it is one of; β is None where it is not known.
        folder: of the run.
        reference: which of the reference points it starts from.
        steps, points, keys: optimiser steps, what was measured there, and the names of its files.
    """

    method: str
    beta: float | None
    seed: int
    folder: str
    reference: str
    steps: Sequence[int]
    points: Sequence[Point]
    keys: Sequence[str]


@dataclass(frozen=True)
class SummarySettings:
    """What is read off.

    Args:
        kl: the KL of matched budgets and fronts: ``exact`` or ``monte_carlo``.
        budgets: KL budgets in nats; None: a quarter, half and all of ``max_kl``.
        max_kl: the area's limit; None: the largest KL that every method reaches.
        baseline: method that others are compared with; None: DPO where it is there, else the first.
        draws: of the bootstrap.
        shared_prompts: all seeds were judged on the same prompts; False: each on its own.
    """

    kl: str = "exact"
    budgets: Sequence[float] | None = None
    max_kl: float | None = None
    baseline: str | None = None
    draws: int = 1000
    shared_prompts: bool = True


def summarise(
    runs: Sequence[MeasuredRun], references: Mapping[str, Point], settings: SummarySettings
) -> dict[str, Any]:
    """All that ``frontier.json`` says about runs, JSON types only.

    Returns:
        ``references`` (reward by reference), ``points`` (means over seeds by method, β and step), ``runs`` (a line a run
        and step), ``methods`` (front and number of points), ``comparison`` (None where it cannot be made), ``optimum``,
        ``notes``.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    points = _points(runs, settings)
    notes: list[str] = []
    limit = settings.max_kl if settings.max_kl is not None else _reached(points, methods, settings.kl)
    optima = _optima(references, notes)
    comparison = _comparison(runs, references, optima, limit, settings, notes)
    return {
        "kl": settings.kl,
        "max_kl": limit,
        "references": {name: _own(point, settings) for name, point in references.items()},
        "points": points,
        "runs": [_line(run, place, settings) for run in runs for place in range(len(run.points))],
        "methods": {
            name: {
                "points": sum(len(run.points) for run in runs if run.method == name),
                "seeds": sorted({run.seed for run in runs if run.method == name}),
                "front": front_of(points, name, settings.kl),
            }
            for name in methods
        },
        "comparison": comparison,
        "optimum": None if optima is None else _optimum_line(optima, limit),
        "notes": notes,
    }


def front_of(points: Sequence[Mapping[str, Any]], method: str, kl: str) -> list[int]:
    """Places in ``points`` of a method's Pareto front, by KL."""
    own = [place for place, point in enumerate(points) if point["method"] == method]
    front = pareto_front(
        [points[place][kl]["value"] for place in own], [points[place]["reward"]["value"] for place in own]
    )
    return [own[place] for place in front]


def _points(runs: Sequence[MeasuredRun], settings: SummarySettings) -> list[dict[str, Any]]:
    """Means over seeds, by method, β and step, in the order in which they come."""
    groups: dict[tuple[str, float | None, int], list[tuple[int, Point]]] = {}
    for run in runs:
        for step, point in zip(run.steps, run.points, strict=True):
            groups.setdefault((run.method, run.beta, step), []).append((run.seed, point))
    return [
        {"method": method, "beta": beta, "step": step, "seeds": [seed for seed, _ in own]}
        | _statistics([point for _, point in own], settings)
        for (method, beta, step), own in groups.items()
    ]


def _own(point: Point, settings: SummarySettings) -> dict[str, Any]:
    return {"reward": _interval(_mean([point.rewards.mean(1)], settings)), "samples": point.rewards.shape[1]}


def _line(run: MeasuredRun, place: int, settings: SummarySettings) -> dict[str, Any]:
    named = {"method": run.method, "beta": run.beta, "seed": run.seed, "step": run.steps[place], "folder": run.folder}
    files = {"reference": run.reference, "samples": f"points/{run.keys[place]}.jsonl"}
    return named | files | _statistics([run.points[place]], settings)


def _mean(groups: Sequence[ArrayLike], settings: SummarySettings) -> Interval:
    """Seeds whose tokenizers left out different pairs of data do not share what is left."""
    shared = settings.shared_prompts and len({np.size(group) for group in groups}) == 1
    return bootstrap_mean(groups, settings.draws, shared_prompts=shared)


def _statistics(points: Sequence[Point], settings: SummarySettings) -> dict[str, Any]:
    """Reward, KLs and lengths of one setting's seeds, as estimates with intervals."""
    kls = [name for name in points[0].kls if all(name in point.kls for point in points)]
    found: dict[str, Any] = {"reward": _mean([point.rewards.mean(1) for point in points], settings)}
    found |= {name: _mean([point.kls[name].mean(1) for point in points], settings) for name in kls}
    for side in SIDES:
        if all(side in point.data for point in points):
            for name in points[0].data[side]:
                found[f"{name}_{side}"] = _mean([point.data[side][name] for point in points], settings)
    shown: dict[str, Any] = {name: _interval(own) for name, own in found.items()}
    shown["length"] = float(np.mean([point.tokens.mean() for point in points]))
    shown["finished"] = float(np.mean([point.finished.mean() for point in points]))
    return shown


def _reached(points: Sequence[Mapping[str, Any]], methods: Sequence[str], kl: str) -> float:
    """The largest KL that every method has a point at or beyond."""
    return min(max(point[kl]["value"] for point in points if point["method"] == name) for name in methods)


def _optima(references: Mapping[str, Point], notes: list[str]) -> dict[str, TiltedReference] | None:
    fewest = min(point.rewards.shape[1] for point in references.values())
    if fewest < LEAST_OPTIMUM:
        notes.append(
            f"The optimum is not shown: the reference was sampled {fewest} times a prompt; it needs at least "
            f"{LEAST_OPTIMUM}, better 64."
        )
        return None
    return {name: TiltedReference(point.rewards) for name, point in references.items()}


def _optimum_line(optima: Mapping[str, TiltedReference], limit: float) -> list[dict[str, float]]:
    """The optimum's KL and reward up to ``limit`` nats, averaged over references, as far as their samples show it."""
    line = []
    for kl in np.linspace(0.0, math.sqrt(max(limit, 0.0)), 25) ** 2:
        try:
            found = [own.at_kl(float(kl)) for own in optima.values()]
        except ValueError:
            break
        if not all(point.is_reliable for point in found):
            break
        line.append({"kl": float(kl), "reward": float(np.mean([point.reward for point in found]))})
    return line


def _comparison(
    runs: Sequence[MeasuredRun],
    references: Mapping[str, Point],
    optima: Mapping[str, TiltedReference] | None,
    limit: float,
    settings: SummarySettings,
    notes: list[str],
) -> dict[str, Any] | None:
    curves = _curves(runs, references, settings.kl)
    seeds = sorted(set.intersection(*(set(own) for own in curves.values())))
    left_out = sorted({seed for own in curves.values() for seed in own} - set(seeds))
    if left_out and seeds:
        notes.append(
            f"Methods are compared on the seeds that all of them have; left out: {', '.join(map(str, left_out))}."
        )
    if not seeds:
        notes.append("Methods are not compared: no seed is common to all of them.")
        return None
    if not limit > 0:
        notes.append("Methods are not compared: no method is away from its reference.")
        return None
    if len(seeds) == 1:
        notes.append("One seed: intervals and tests are over prompts alone, and say nothing of other seeds.")
    shared = {name: {seed: own[seed] for seed in seeds} for name, own in curves.items()}
    counts = {name: sum(len(own) for own in by_seed.values()) for name, by_seed in shared.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        notes.append(f"Methods have different numbers of runs ({said}): the best of more runs is flattered.")
    budgets = list(settings.budgets) if settings.budgets else [_rounded(limit * share) for share in (0.25, 0.5, 1.0)]
    notes += _gaps(shared, budgets)
    baseline = settings.baseline or ("DPO" if "DPO" in shared else next(iter(shared)))
    own_optima = _optima_of_seeds(runs, optima, seeds, notes)
    if own_optima is not None and not _reaches(own_optima, budgets):
        notes.append(
            "The share of the optimum's gain is left out: the reference's samples do not show it at these budgets."
        )
        own_optima = None
    found = compare(
        shared,
        budgets,
        baseline,
        optima=own_optima,
        limit=limit,
        draws=settings.draws,
        shared_prompts=settings.shared_prompts,
    )
    return {"baseline": baseline, "runs": counts, **_shown(found)}


def _curves(runs: Sequence[MeasuredRun], references: Mapping[str, Point], kl: str) -> dict[str, dict[int, list[Curve]]]:
    curves: dict[str, dict[int, list[Curve]]] = {}
    for run in runs:
        rewards: Array = np.stack([point.rewards.mean(1) for point in run.points])
        kls: Array = np.stack([point.kls[kl].mean(1) for point in run.points])
        curve = Curve(rewards, kls, references[run.reference].rewards.mean(1))
        curves.setdefault(run.method, {}).setdefault(run.seed, []).append(curve)
    return curves


def _gaps(curves: Mapping[str, Mapping[int, Sequence[Curve]]], budgets: Sequence[float]) -> list[str]:
    """Methods that were never measured at as little KL as a budget: what is said of them there is interpolation."""
    found = []
    for name, by_seed in curves.items():
        least = min(float(curve.points()[0][1:].min()) for own in by_seed.values() for curve in own)
        if below := [budget for budget in budgets if budget < least]:
            said = ", ".join(f"{budget:g}" for budget in below)
            found.append(
                f"{name} has no checkpoint with so little KL as {said} nats (its least is {least:.3g}): its reward there is "
                "interpolated from the reference. Save more often, or earlier."
            )
    return found


def _optima_of_seeds(
    runs: Sequence[MeasuredRun], optima: Mapping[str, TiltedReference] | None, seeds: Sequence[int], notes: list[str]
) -> dict[int, TiltedReference] | None:
    if optima is None:
        return None
    starts = {seed: {run.reference for run in runs if run.seed == seed} for seed in seeds}
    if any(len(own) > 1 for own in starts.values()):
        notes.append("The share of the optimum's gain is left out: runs of one seed start from different references.")
        return None
    return {seed: optima[own.pop()] for seed, own in starts.items()}


def _reaches(optima: Mapping[int, TiltedReference], budgets: Sequence[float]) -> bool:
    try:
        return all(own.at_kl(budget).is_reliable for own in optima.values() for budget in budgets)
    except ValueError:
        return False


def _rounded(value: float) -> float:
    """Two digits, downwards, so that every method reaches the budget."""
    if value <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(value))
    return math.floor(value * 10**digits + 1e-9) / 10**digits


def _shown(found: Comparisons) -> dict[str, Any]:
    return {
        "seeds": list(found.seeds),
        "within": [
            {"budget": budget, "methods": {name: _compared(own) for name, own in methods.items()}}
            for budget, methods in found.within.items()
        ],
        "area": None if found.area is None else {name: _compared(own) for name, own in found.area.items()},
    }


def _compared(own: Comparison) -> dict[str, Any]:
    return {
        "reward": _interval(own.reward),
        "difference": _interval(own.difference),
        "p_value": own.p_value,
        "p_adjusted": own.p_adjusted,
        "share": None if own.share is None else _interval(own.share),
    }


def _interval(values: Interval) -> dict[str, float]:
    value, low, high = values
    return {"value": value, "low": low, "high": high}
