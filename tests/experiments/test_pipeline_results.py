"""Results: one row a run, means with Student's intervals, files that other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsepo.experiments.pipeline.collecting import as_csv, collect, gather
from sparsepo.experiments.pipeline.folder import ExperimentFolder
from sparsepo.experiments.pipeline.jobs import write_lines
from sparsepo.experiments.pipeline.planning import plan_of
from sparsepo.experiments.pipeline.recipe import SFT, Recipe, read_recipe
from sparsepo.experiments.pipeline.result_pages import write_report
from sparsepo.experiments.pipeline.result_tables import groups_of, parts, tables
from sparsepo.experiments.pipeline.stages import Plan

PROMPTS, SAMPLES = 6, 2


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Plan, ExperimentFolder]:
    """A sentiment experiment of two methods, two β and three seeds in which one run is missing."""
    changes = ["methods=[DPO, SparsePO common]", "betas=[0.1, 0.5]", f"evaluate.samples={SAMPLES}"]
    recipe = read_recipe("sentiment", "small", changes)
    plan = plan_of(recipe, recipe.data)
    folder = ExperimentFolder(tmp_path_factory.mktemp("experiment"))
    folder.save(plan.keys["reward"], {"summary": "", "seconds": 1.0, "metrics": {"held_out_auc": 0.7}})
    for stage in plan.runs():
        if stage.row == {"method": "DPO", "beta": 0.5, "seed": 2}:
            continue
        _save_run(plan, folder, stage.name, **stage.row)
    return recipe, plan, folder


@pytest.fixture(scope="module")
def results(experiment: tuple[Recipe, Plan, ExperimentFolder]) -> dict[str, Any]:
    """What is gathered of it."""
    return gather(*experiment)


def _save_run(plan: Plan, folder: ExperimentFolder, name: str, method: str, beta: float | None, seed: int) -> None:
    gain = 0.0 if method == SFT else 0.2 + 0.1 * seed
    rewards = gain + 0.01 * np.arange(PROMPTS * SAMPLES)
    kl = {None: 0.0, 0.1: 4.0, 0.5: 3.0}[beta]
    rows = [
        {"reward": float(value), "sequence_kl": kl, "monte_carlo_kl": kl, "tokens": 5, "finished": True, "prompt": "p"}
        for value in rewards
    ]
    stage = folder.stage(plan.keys[name])
    stage.mkdir(parents=True)
    write_lines(stage / "samples.jsonl", rows)
    metrics = {"reward": float(rewards.mean()), "sequence_kl": kl, "length": 5.0, "finished": 1.0}
    folder.save(
        plan.keys[name],
        {"metrics": metrics, "prompts": PROMPTS, "prompts_left_out": 0, "versions": {}, "summary": "", "seconds": 1.0},
    )
    if method != SFT:
        trained = {"reward_accuracy": 0.6 + 0.1 * seed, "kl_chosen": 1.0}
        trained |= {"masked_kl_chosen": 0.5, "reward_mask_zeros": 0.25} if method.startswith("SparsePO") else {}
        own = {"metrics": trained, "steps": 3, "train_seconds": 2.0, "mask_findings": ["saturation"], "seconds": 2.0}
        folder.save(plan.keys[plan.stages[name].needs["train"]], own)


def test_a_row_a_run_and_what_is_missing(
    experiment: tuple[Recipe, Plan, ExperimentFolder], results: dict[str, Any]
) -> None:
    assert len(results["runs"]) == len(experiment[1].runs()) - 1
    assert results["missing"] == ["DPO β 0.5 seed 2"]
    assert not results["complete"]
    row = next(run for run in results["runs"] if (run["method"], run["beta"], run["seed"]) == ("DPO", 0.1, 1))
    assert row["metrics"]["reward_accuracy"] == pytest.approx(0.7)
    assert row["settings"]["objective"] == "dpo"
    assert row["settings"]["beta"] == 0.1
    assert results["recipe"]["betas"] == [0.1, 0.5]
    start = next(run for run in results["runs"] if run["method"] == SFT)
    assert (start["beta"], start["settings"], start["metrics"]["sequence_kl"]) == (None, {}, 0.0)


def test_means_and_intervals(results: dict[str, Any]) -> None:
    groups = {(group.method, group.beta): group for group in groups_of(results["runs"])}
    found = groups["DPO", 0.1].estimate("reward_accuracy")
    assert found is not None
    assert found.mean == pytest.approx(0.7)
    assert found.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3))  # Student's t, two degrees of freedom
    assert len(groups["DPO", 0.5].runs) == 2
    assert groups["DPO", 0.1].estimate("mask_auc") is None
    assert list(groups) == [(SFT, None), ("DPO", 0.1), ("DPO", 0.5), ("SparsePO common", 0.1), ("SparsePO common", 0.5)]


def test_reward_at_matched_kl_is_interpolated_from_the_start(results: dict[str, Any]) -> None:
    frontier = results["frontier"]
    comparison = frontier["comparison"]
    assert comparison["baseline"] == "DPO"
    assert comparison["seeds"] == [0, 1, 2]
    budget = comparison["within"][0]
    # every run gains 0.3 on average, at a KL of 3 nats or more; linear in √KL before that
    assert budget["budget"] == 1.0
    expected = 0.055 + 0.3 * math.sqrt(1 / 3)
    assert budget["methods"]["SparsePO common"]["reward"]["value"] == pytest.approx(expected, abs=1e-6)


def test_tables_and_csv(results: dict[str, Any]) -> None:
    text = tables(results)
    assert "**Not complete:** 1 runs are missing: DPO β 0.5 seed 2." in text
    assert "| SFT | – | 3 | 0.055 ± 0.000 | 0.000 ± 0.000 |" in text
    assert "held out auc 0.700" in text
    titles = [part.title for part in parts(results)]
    assert titles == ["What the policies write", "Reward at matched KL", "On held-out pairs", "Masks"]
    rows = list(csv.DictReader(io.StringIO(as_csv(results["runs"]))))
    assert len(rows) == len(results["runs"])
    assert {row["setting.objective"] for row in rows} == {"", "dpo", "sparsepo"}
    assert rows[1]["mask_findings"] == "saturation"
    assert list(csv.DictReader(io.StringIO(as_csv([])))) == []


def test_all_files_are_written(experiment: tuple[Recipe, Plan, ExperimentFolder]) -> None:
    recipe, plan, folder = experiment
    results = collect(recipe, plan, folder.path)
    assert json.loads((folder.path / "results.json").read_text()) == json.loads(json.dumps(results))
    for name in ("frontier", "reward_accuracy", "masked_kl"):
        assert (folder.path / "plots" / f"{name}.png").stat().st_size > 1000
        assert (folder.path / "plots" / f"{name}.svg").read_text().startswith("<?xml")
    page = (folder.path / "report.html").read_text()
    for expected in ("sentiment, size small", "SparsePO common", "Reward at matched KL", "data:image/svg+xml"):
        assert expected in page


def test_axes_say_how_samples_were_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    def drawn(name: str, **changes: Any) -> str:
        recipe = {**results["recipe"], "evaluate": {**results["recipe"]["evaluate"], **changes}}
        write_report({**results, "recipe": recipe}, tmp_path / name)
        return (tmp_path / name / "plots" / "frontier.svg").read_text(encoding="utf-8")

    plain = drawn("plain")
    assert "exact, nats" in plain
    assert "temperature" not in plain
    code = drawn("code", temperature=0.6)
    assert "exact, nats, of samples at temperature 0.6" in code
    assert "sampled reward (temperature 0.6)" in code
    assert "temperature 0.6, top_p 0.9" in drawn("both", temperature=0.6, top_p=0.9)


def test_an_experiment_of_which_nothing_is_done(tmp_path: Path) -> None:
    recipe = read_recipe("playground", "smoke")
    results: dict[str, Any] = collect(recipe, plan_of(recipe, {}), tmp_path)
    assert results["runs"] == []
    assert results["frontier"] is None
    assert "runs are missing" in (tmp_path / "tables.md").read_text()
