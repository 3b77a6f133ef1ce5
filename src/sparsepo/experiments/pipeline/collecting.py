"""Results of an experiment in one place: a row a run, as JSON and CSV, then tables, plots and a page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsepo.experiments.writing import write_json
from sparsepo.inspection.document import write_whole

from .folder import ExperimentFolder
from .recipe import Recipe, as_text
from .result_frontier import frontier_of
from .result_pages import write_report
from .result_tables import tables
from .stages import Plan

FILES = ("results.json", "results.csv", "tables.md", "report.html")
Row = dict[str, Any]


def collect(recipe: Recipe, plan: Plan, path: str | Path) -> Row:
    """Write ``results.json``, ``results.csv``, ``tables.md``, ``report.html`` and ``plots/`` from what is done.

    Returns:
        The content of ``results.json``: ``runs`` has a row for each run that is done, with ``method``, ``beta``, ``seed``,
        ``metrics`` and ``settings``; ``missing`` names the others.
    """
    path = Path(path)
    results = gather(recipe, plan, ExperimentFolder(path))
    write_json(path / "results.json", results)
    write_whole(path / "results.csv", as_csv(results["runs"]))
    write_whole(path / "tables.md", tables(results))
    write_report(results, path)
    return results


def gather(recipe: Recipe, plan: Plan, folder: ExperimentFolder) -> Row:
    """What ``results.json`` holds."""
    runs, missing = [], []
    for stage in plan.runs():
        judged = folder.result(plan.keys[stage.name])
        if judged is None:
            missing.append(stage.name.removeprefix("evaluate "))
            continue
        trained = stage.needs.get("train")
        own = (folder.result(plan.keys[trained]) or {}) if trained is not None else {}
        runs.append(
            {
                **stage.row,
                "metrics": {**own.get("metrics", {}), **judged["metrics"]},
                "mask_findings": own.get("mask_findings", []),
                "train_seconds": own.get("train_seconds"),
                "steps": own.get("steps"),
                "prompts": judged["prompts"],
                "prompts_left_out": judged["prompts_left_out"],
                "versions": judged["versions"],
                "settings": {} if trained is None else plan.stages[trained].settings["flags"],
            }
        )
    stages = {stage.name: folder.result(plan.keys[stage.name]) for stage in plan.stages.values() if stage.row == {}}
    return {
        "task": recipe.task,
        "size": recipe.size,
        "about": recipe.about,
        "reward": recipe.reward,
        "complete": not missing,
        "missing": missing,
        "runs": runs,
        "frontier": frontier_of(plan, folder),
        "stages": {name: result for name, result in stages.items() if result is not None},
        "recipe": json.loads(as_text(recipe)),
    }


def as_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line a run: method, β, seed, metrics and, with ``setting.`` before their names, the training's settings."""
    flat = [
        {
            **{name: run[name] for name in ("method", "beta", "seed")},
            **run["metrics"],
            **{name: run[name] for name in ("steps", "train_seconds", "prompts")},
            "mask_findings": " ".join(run["mask_findings"]),
            **{f"setting.{name}": _cell(value) for name, value in run["settings"].items()},
        }
        for run in runs
    ]
    names = list(dict.fromkeys(name for row in flat for name in row if not name.startswith("setting.")))
    names += sorted({name for row in flat for name in row if name.startswith("setting.")})
    text = io.StringIO()
    writer = csv.DictWriter(text, names or ["method", "beta", "seed"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
