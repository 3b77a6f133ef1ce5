"""Studies from end to end in their quick form: runs, resuming, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsepo.evaluation.tilting import TiltedReference
from sparsepo.experiments import exchange, matched, playground_runs
from sparsepo.experiments.grids import GRIDS
from sparsepo.experiments.playground_materials import get_materials
from sparsepo.experiments.store import Store
from sparsepo.experiments.studies import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """DPO, a learned mask with a target, and one read at its token, by label."""
    assert study(folder) == 0
    found = (json.loads(path.read_text()) for path in (folder / "runs").glob("*.json"))
    return {result["task"]["label"]: result for result in found}


def study(folder: Path, *more: str) -> int:
    only = ["DPO", "normalised 0.6, position"]
    return main(["gates", "--output", str(folder), "--quick", "--seeds", "3", "--only", *only, *more])


def test_a_run_stores_everything_that_the_tables_need(results: dict[str, dict[str, Any]]) -> None:
    mask, dpo = results["normalised 0.6, position token"], results["DPO"]
    for score in ("reward_mask", "kl_mask", "log_ratio", "entropy", "random", "uniform", "ceiling"):
        assert set(mask["ranking"][score]) == set(playground_runs.SELECTIONS)
        assert 0 <= mask["ranking"][score]["all"]["auc"] <= 1
    assert mask["ranking"]["uniform"]["all"]["auc"] == 0.5
    assert "reward_mask" not in dpo["ranking"]
    assert dpo["share_of_ceiling"] == {}
    assert mask["share_of_ceiling"] == {}  # the ceiling is that of the predicting position
    assert mask["masks"]["reward_mask"]["mean"] == pytest.approx(1, abs=1e-5)
    assert len(mask["controls"]["untrained"]["all"]["auc"]) == playground_runs.UNTRAINED_HEADS
    assert mask["controls"] != dpo["controls"]  # heads read where the run's mask reads
    for result in results.values():
        half, last = result["policy"]  # this study judges twice
        assert half["step"] < last["step"]
        assert last["step"] == 4
        assert last["kl"]["mean"] > 0
        assert 0 < last["reward"]["mean"] < 1
        assert last["share_of_optimum"] is not None
        assert result["health"]["collapse"] is False


def test_what_is_done_is_not_done_again(
    folder: Path,
    results: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(playground_runs, "run_task", lambda *_: pytest.fail("ran again"))
    assert study(folder) == 0
    text = capsys.readouterr().out
    assert "| normalised 0.6, position token | 1 |" in text
    assert "40 untrained heads, mean" in text
    assert (folder / "gates.md").read_text() in text
    assert study(folder, "--list") == 0
    assert capsys.readouterr().out.count("done seed 3") == len(results)
    assert study(folder, "--report_only", "--limit", "1") == 0


def test_exported_results_make_the_same_table(
    folder: Path,
    results: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(playground_runs, "run_task", lambda *_: pytest.fail("ran again"))
    file = tmp_path / "gates.jsonl.gz"
    assert study(folder, "--export", str(file)) == 0
    other = tmp_path / "elsewhere"
    assert study(other, "--results", str(file)) == 0
    assert (other / "gates.md").read_text() == (folder / "gates.md").read_text()
    found = [json.loads(path.read_text()) for path in (other / "runs").glob("*.json")]
    assert {result["task"]["label"]: result for result in found} == results


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1"),
        ('{"task": {}}', "line 1: no result of a run; ranking"),
        (
            json.dumps({"task": {"colour": 1}} | {name: {} for name in exchange.PARTS}),
            "its task is none of this version",
        ),
    ],
)
def test_other_files_are_no_results(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        study(tmp_path / "study", "--report_only", "--results", str(file))
    with pytest.raises(SystemExit, match=r"must end in \.jsonl"):
        study(tmp_path / "study", "--export", str(tmp_path / "rows.csv"))


def test_missing_runs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--output", str(tmp_path), "--quick", "--seeds", "0", "--report_only"]) == 1
    count = len(GRIDS["targets"]([0]))
    assert f"{count} of {count} runs are not done" in capsys.readouterr().out


def test_judging_the_policy_does_not_touch_the_run(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    store = Store(folder)
    (task,) = (t for t in GRIDS["gates"]([3]) if t.label == "DPO")
    often = playground_runs.run_task(replace(task.quick(), judged_at=(0.25, 0.5, 1.0)), store)
    assert [entry["step"] for entry in often["policy"]] == [1, 2, 4]
    assert often["policy"][-1] == {**results["DPO"]["policy"][-1]}
    assert often["ranking"] == results["DPO"]["ranking"]


def test_materials_leave_unseen_words_out_of_training_pairs_only(tmp_path: Path) -> None:
    (task, *_) = (t.quick() for t in GRIDS["defaults"]([0]) if t.materials.unseen_words)
    materials = get_materials(replace(task.materials, prompts=48), Store(tmp_path))

    def words(rows: list[dict[str, Any]]) -> set[str]:
        return {word for row in rows for side in ("chosen", "rejected") for word in row[side].split()}

    assert not words(materials.train_rows) & materials.world.held_out_words
    assert words(materials.held_out_rows) & materials.world.held_out_words


def test_tuning_and_finals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--output", str(tmp_path), "--quick", "--only", "oracle"]
    with pytest.raises(FileNotFoundError, match="tuning"):
        main(["finals", *common])
    with pytest.raises(SystemExit):
        main(["tuning", *common, "--limit", "1"])
    assert main(["tuning", *common, "--seeds", "3"]) == 0
    found = matched.read_tuning(Store(tmp_path))
    assert set(found) == {"oracle", "oracle + anchor"}
    assert len(found["oracle"]["rungs"]) == 2
    assert len(found["oracle"]["rungs"][1]["scored"]) == 1
    with pytest.raises(ValueError, match="fresh"):
        main(["finals", *common, "--seeds", "3"])
    assert main(["finals", *common, "--seeds", "4"]) == 0
    text = capsys.readouterr().out
    assert "share of the optimum's gain" in text or "No comparison" in text
    assert "oracle + anchor" in text


@pytest.mark.long
def test_two_processes_share_the_work(tmp_path: Path, folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """The same numbers as one process gives, each run done once."""
    assert study(tmp_path, "--jobs", "2") == 0
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert set(found) == {path.name for path in (folder / "runs").glob("*.json")}
    for result in found.values():
        alone = results[result["task"]["label"]]
        assert {k: v for k, v in result.items() if k != "seconds"} == {k: v for k, v in alone.items() if k != "seconds"}


def test_own_candidates_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mine": {"mask_gate": "clamped", "beta": 0.5}}))
    common = ["--output", str(tmp_path), "--seeds", "0", "--settings", str(path)]
    assert main(["defaults", *common, "--list"]) == 0
    listed = capsys.readouterr().out
    assert "mine" in listed
    assert "mine, unseen words" in listed
    assert "normalised" not in listed
    with pytest.raises(SystemExit, match="defaults only"):
        main(["gates", *common])
    for name in ("gates", "tuning"):  # a word that no setting has is no study that has nothing to do
        with pytest.raises(SystemExit, match="--only rleu: no setting's name"):
            main([name, "--output", str(tmp_path), "--seeds", "0", "--only", "rleu"])
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold"):
        main(["defaults", *common])


def test_share_of_the_optimum() -> None:
    optimum = TiltedReference(np.random.default_rng(0).random((100, 64)))
    point = optimum.at_kl(0.2)
    reached = [(point.reward, 0.2), (optimum.reference_reward, 0.2), (0.9, 50.0)]
    policy = [{"reward": {"mean": reward}, "kl": {"mean": kl}} for reward, kl in reached]
    shares = [entry["share_of_optimum"] for entry in playground_runs.with_share_of_optimum(policy, optimum)]
    assert shares == [pytest.approx(1), pytest.approx(0), None]
