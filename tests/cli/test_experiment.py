"""``sparsepo experiment``: a whole experiment on made-up data, done once, and refusals before anything starts."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Outcome, write_rows

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
# one method and the start, two steps each
TINY = (
    "methods=[SparsePO common]", "betas=[0.5]", "seeds=[0]", "sft.max_steps=2", "sft.vocab_size=300", "train.max_steps=2",
    "pairs.margin=0.1", "reward.limit=20", "evaluate.prompts=2", "evaluate.samples=2", "evaluate.max_new_tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored completions, labelled sentences and word lists, as the sentiment task wants them."""
    folder = tmp_path_factory.mktemp("data")
    words = {"good": 1.0, "great": 2.0, "bad": -1.0, "awful": -2.0}
    rows = [
        {"prompt": f"The film number {number} was", "text": f"very {word} and it took {number} hours", "reward": value}
        for number in range(40)
        for word, value in words.items()
    ]
    write_rows(folder / "imdb_scored.jsonl", rows)
    with zipfile.ZipFile(folder / "sentence_polarity.zip", "w") as archive:
        archive.writestr("a/rt.pos", "\n".join(f"a good one {n}" for n in range(20)))
        archive.writestr("a/rt.neg", "\n".join(f"a bad one {n}" for n in range(20)))
    with zipfile.ZipFile(folder / "vader_lexicon.zip", "w") as archive:
        archive.writestr("v/vader_lexicon.txt", "good\t1.9\t0.9\t[1]\nbad\t-2.5\t0.6\t[-2]\n")
    with zipfile.ZipFile(folder / "opinion_lexicon.zip", "w") as archive:
        archive.writestr("o/positive-words.txt", "great\n")
        archive.writestr("o/negative-words.txt", "awful\n")
    return folder


def _run(sparsepo: Callable[..., Outcome], data: Path, output: Path, *more: str) -> Outcome:
    rows = f"rows={data / 'imdb_scored.jsonl'}"
    return sparsepo(
        "experiment", "run", "sentiment", "--size", "smoke", "--data_dir", data, "--data", rows, "--output", output,
        "--set", *TINY, *more,
    )  # fmt: skip


def _done(output: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (output / "stages").glob("*/done.json")}


def test_an_experiment_is_done_once_and_again_where_settings_change(
    sparsepo: Callable[..., Outcome], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    outcome = _run(sparsepo, data, output)
    assert outcome.status == 0, outcome.err + outcome.out
    assert "2 of 2 runs" in outcome.out
    results = json.loads((output / "results.json").read_text())
    assert results["complete"]
    run = results["runs"][1]
    assert (run["method"], run["beta"], run["seed"]) == ("SparsePO common", 0.5, 0)
    wanted = {"reward_accuracy", "reward_margin", "loss", "kl_chosen", "masked_kl_chosen", "reward_mask_zeros"}
    wanted |= {"mask_auc", "mask_auc_content", "entropy_auc"}
    wanted |= {"reward", "sequence_kl", "masked_sequence_kl", "monte_carlo_kl"}
    assert wanted <= set(run["metrics"])
    assert run["metrics"]["sequence_kl"] > 0
    assert len(list(csv.DictReader((output / "results.csv").open()))) == 2
    for name in ("tables.md", "report.html", "plots/frontier.png", "plots/frontier.svg"):
        assert (output / name).is_file()
    samples = next(output.glob("stages/evaluate-SparsePO*/samples.jsonl")).read_text().splitlines()
    assert len(samples) == 4
    assert {"prompt", "text", "seed", "reward", "sequence_kl"} <= set(json.loads(samples[0]))

    first = _done(output)
    outcome = _run(sparsepo, data, output)
    assert outcome.status == 0
    assert _done(output) == first

    outcome = _run(sparsepo, data, output, "evaluate.prompts=3")
    assert "changed: evaluate SparsePO common β 0.5 seed 0: prompts 2 → 3: done again" in outcome.out
    second = _done(output)
    assert {name: second[name] for name in first} == first  # nothing that was done is touched
    assert all(name.startswith("evaluate") for name in set(second) - set(first))
    assert len(second) == len(first) + 2

    status = sparsepo("experiment", "status", output)
    assert "7 stages: 7 done" in status.out
    told = json.loads(sparsepo("experiment", "status", output, "--json").out)
    assert told["counts"]["done"] == 7
    assert {stage["status"] for stage in told["stages"]} == {"done"}

    other = sparsepo("experiment", "run", "playground", "--size", "smoke", "--output", output)
    assert other.status == 1
    assert "holds the experiment sentiment at size smoke" in other.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.max_stepz=3", "unknown setting 'max_stepz'; did you mean max_steps"),
        ("train.learning_rate=fast", "learning_rate: 'fast' must be a number"),
        ("sft.max_length=long", "max_length: 'long'"),
        ("method_settings.SparsePO common.mask_gate=rellu", "mask_gate"),
    ],
)
def test_settings_of_training_are_checked_before_anything_runs(
    sparsepo: Callable[..., Outcome], data: Path, tmp_path: Path, change: str, message: str
) -> None:
    outcome = _run(sparsepo, data, tmp_path / "out", change)
    assert outcome.status == 1
    assert message in outcome.err
    assert not (tmp_path / "out" / "stages").exists()


def test_missing_files_and_wrong_folders_are_refused(
    sparsepo: Callable[..., Outcome], data: Path, tmp_path: Path
) -> None:
    outcome = sparsepo("experiment", "run", "sentiment", "--data_dir", tmp_path, "--output", tmp_path / "out")
    assert outcome.status == 1
    assert "data files are missing" in outcome.err
    assert "--data ROLE=FILE" in outcome.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert "holds something else" in _run(sparsepo, data, tmp_path / "taken").err
    assert "must be at least 1" in sparsepo("experiment", "run", "playground", "--jobs", "0").err
    assert "above 0 seconds" in sparsepo("experiment", "run", "playground", "--stale_after", "0").err
    assert "Name a task" in sparsepo("experiment", "run").err
    assert "holds no experiment" in sparsepo("experiment", "status", tmp_path / "nowhere").err
    assert sparsepo("experiment", "run", "sentimnt").status == 2


def test_programs_are_run_by_permission_only(sparsepo: Callable[..., Outcome], data: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "p.jsonl", [{"text": "t", "code": "def f(): pass", "test_list": ["assert f() is None"]}]
    )
    outcome = sparsepo("experiment", "run", "code", "--data", f"rows={rows}", "--output", tmp_path / "out")
    assert outcome.status == 1
    assert "--allow-code-execution" in outcome.err
    assert not (tmp_path / "out").exists()


def test_lists_and_dry_runs_do_nothing(sparsepo: Callable[..., Outcome], data: Path, tmp_path: Path) -> None:
    listed = sparsepo("experiment", "run", "--list").out
    for expected in ("sentiment", "playground", "small", "paper", "123 runs"):
        assert expected in listed
    output = tmp_path / "out"
    outcome = sparsepo("experiment", "run", "dialogue", "--size", "paper", "--dry_run", "--output", output)
    assert outcome.status == 0
    for expected in ("Anthropic/hh-rlhf (from the hub)", "EleutherAI/pythia-1.4b", "96 train", "GB"):
        assert expected in outcome.out
    missing = sparsepo("experiment", "run", "sentiment", "--data_dir", tmp_path, "--dry_run", "--output", output)
    assert missing.status == 1
    assert "rows: " in missing.out
    assert not output.exists()


@pytest.mark.long
@pytest.mark.parametrize("task", ["sentiment", "dialogue", "summarisation", "code", "playground"])
def test_every_task_runs_through(task: str, sparsepo: Callable[..., Outcome], tmp_path: Path) -> None:
    if task != "playground" and not SHARED.is_dir():
        pytest.skip(f"needs the data of {SHARED}")
    more: tuple[Any, ...] = ("--allow-code-execution",) if task == "code" else ()
    outcome = sparsepo(
        "experiment", "run", task, "--size", "smoke", "--data_dir", SHARED, "--output", tmp_path / "out", "--jobs", 2, *more
    )  # fmt: skip
    assert outcome.status == 0, outcome.out + outcome.err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"]
