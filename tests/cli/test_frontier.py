"""``sparsepo frontier`` on real runs: what is found in folders, what is written, and what is refused before any sampling."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.base import CliError
from sparsepo.cli.frontier_runs import find_runs
from sparsepo.cli.main import main
from tests.cli.conftest import SHORT_RUN, Outcome

Call = Callable[..., Outcome]
COMMON = ("--reward", "playground", "--max_new_tokens", 6, "--draws", 20, "--use_cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, pairs_file: Path) -> Path:
    """A DPO and a SparsePO run with two checkpoints; the first samples while it trains."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = folder / "prompts.txt"
    prompts.write_text("the film was\na story with\nthe actor\nthe scene is\n")
    for name, own in (
        ("dpo", ["--objective=dpo", "--beta=0.2", "--sample_prompts", str(prompts), "--sample_every=2",
                 "--sample_reward=playground", "--sample_max_new_tokens=4"]),
        ("sparse", ["--objective=sparsepo", "--mask_sharing=independent", "--seed=3"]),
    ):  # fmt: skip
        arguments = [
            *("train", *SHORT_RUN, "--save_strategy=steps", "--save_steps=1", "--report=false", "--inspect_pairs=0"),
            *("--model_name_or_path", str(model_folder), "--dataset_name", str(pairs_file)),
            *("--output_dir", str(folder / name), *own),
        ]
        assert main(arguments) == 0
    return folder


def frontier(runs: Path, output: Path, pairs: Path) -> list[str]:
    arguments = (
        "frontier",
        runs / "dpo",
        runs / "sparse",
        "--prompts",
        runs / "prompts.txt",
        *COMMON,
        "--pairs",
        pairs,
    )
    return [*map(str, arguments), "--samples", "2", "--reference_samples", "16", "--output", str(output)]


@pytest.fixture(scope="module")
def written(runs: Path, held_out_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of both runs."""
    folder = tmp_path_factory.mktemp("frontier")
    assert main(frontier(runs, folder, held_out_file)) == 0
    return folder


def test_samples_while_training(runs: Path) -> None:
    rows = [json.loads(line) for line in (runs / "dpo" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 4 + [2] * 4
    assert all(0 <= row["reward"] <= 1 for row in rows)


def test_runs_are_read_from_their_folders(runs: Path, model_folder: Path) -> None:
    dpo, sparse = find_runs([str(runs / "dpo"), str(runs / "sparse")], None, "all")
    assert (dpo.method, dpo.beta, dpo.seed, dpo.reference) == ("DPO", 0.2, 42, str(model_folder))
    assert (sparse.method, sparse.seed) == ("SparsePO (independent)", 3)
    # the folder of the end holds what checkpoint-2 holds: one point
    assert [step for step, _ in dpo.checkpoints] == [1, 2]
    assert [step for step, _ in find_runs([str(runs / "dpo")], None, "last")[0].checkpoints] == [2]
    (plain,) = find_runs([f"start={model_folder}:{model_folder}"], None, "all")
    assert (plain.method, plain.beta, plain.seed, plain.checkpoints) == ("start", None, 0, ((0, str(model_folder)),))
    first, second = find_runs([f"x={runs / 'dpo'}", f"y={runs / 'dpo'}:{model_folder}"], None, "1")
    assert (first.method, second.method, second.reference) == ("x", "y", str(model_folder))
    with pytest.raises(CliError, match=r"are both DPO, β 0\.2, seed 42"):
        find_runs([str(runs / "dpo"), str(runs / "dpo")], None, "all")


def test_runs_of_other_settings_are_not_averaged(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "dpo", other)
    for path in other.rglob("sparsepo.json"):
        content = json.loads(path.read_text())
        content["seed"] = 7
        content["objective"]["kl_anchor"] = 0.5
        path.write_text(json.dumps(content))
    with pytest.raises(CliError, match="both called DPO and differ in kl_anchor: name them"):
        find_runs([str(runs / "dpo"), str(other)], None, "all")
    named = find_runs([f"A={runs / 'dpo'}", f"A={other}"], None, "all")
    assert [run.seed for run in named] == [42, 7]


def test_what_is_written(written: Path) -> None:
    content = json.loads((written / "frontier.json").read_text())
    assert [point["step"] for point in content["points"]] == [1, 2, 1, 2]
    assert content["settings"]["runs"][1]["method"] == "SparsePO (independent)"
    sparse = content["points"][-1]
    assert {"exact", "monte_carlo", "masked", "forward_kl_chosen", "masked_forward_kl_rejected"} <= set(sparse)
    assert "masked" not in content["points"][0]
    with (written / "frontier.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["seed"], line["step"]) for line in lines] == [
        ("DPO", "42", "1"),
        ("DPO", "42", "2"),
        ("SparsePO (independent)", "3", "1"),
        ("SparsePO (independent)", "3", "2"),
    ]
    for line in lines:
        rows = [json.loads(row) for row in (written / line["samples"]).read_text().splitlines()]
        assert float(line["reward"]) == pytest.approx(sum(row["reward"] for row in rows) / 8)
        assert float(line["exact"]) == pytest.approx(sum(row["kl"]["exact"] for row in rows) / 8)
    for name in ("frontier", "monte_carlo", "masked", "forward_kl_chosen"):
        assert (written / "plots" / f"{name}.png").is_file()
        assert (written / "plots" / f"{name}.svg").is_file()
    svg = (written / "plots" / "monte_carlo.svg").read_text()
    assert "Monte-Carlo log-ratio (nats)" in svg
    assert "exact per token (nats)" in (written / "plots" / "frontier.svg").read_text()
    page = (written / "frontier.html").read_text()
    assert "the film was" in page


def test_points_are_measured_once(
    sparsepo: Call, runs: Path, written: Path, held_out_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(written / "points", tmp_path / "points")
    again = sparsepo(*frontier(runs, tmp_path, held_out_file), "--kl", "monte_carlo", "--checkpoints", "last")
    assert again.status == 0, again.err
    assert again.out.count("(kept)") == 3
    assert " s)" not in again.out
    content = json.loads((tmp_path / "frontier.json").read_text())
    assert content["kl"] == "monte_carlo"
    before = json.loads((written / "frontier.json").read_text())
    assert content["points"][0] == before["points"][1]


def test_data_kl_is_the_run_s_own(
    sparsepo: Call, runs: Path, written: Path, held_out_file: Path, tmp_path: Path
) -> None:
    """KL(ref ‖ π) on data, masked and not, against what `sparsepo evaluate` reports of the same folder and pairs."""
    point = json.loads((written / "frontier.json").read_text())["points"][-1]
    result = sparsepo("evaluate", runs / "sparse", held_out_file, "--json", tmp_path / "e.json", "--use_cpu")
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "e.json").read_text())["metrics"]
    for side in ("chosen", "rejected"):
        assert point[f"forward_kl_{side}"]["value"] == pytest.approx(metrics[f"kl/{side}"], rel=1e-3, abs=1e-7)
        assert point[f"masked_forward_kl_{side}"]["value"] == pytest.approx(
            metrics[f"kl_masked/{side}"], rel=1e-3, abs=1e-7
        )


def test_offensive_words_are_masked_on_the_page_alone(sparsepo: Call, runs: Path, tmp_path: Path) -> None:
    rude = tmp_path / "rude.txt"
    rude.write_text("the shit film was\n")
    base = ("frontier", runs / "dpo", "--prompts", rude, *COMMON, "--checkpoints", "last")
    plain = sparsepo(*base, "--output", tmp_path / "a")
    assert plain.status == 0, plain.err
    page = (tmp_path / "a" / "frontier.html").read_text()
    assert "Content notice" in page
    assert "the shit film" in page
    masked = sparsepo(*base, "--output", tmp_path / "b", "--content_filter")
    assert masked.status == 0, masked.err
    assert "the s... film" in (tmp_path / "b" / "frontier.html").read_text()
    assert any("the shit film" in path.read_text() for path in (tmp_path / "b" / "points").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("./nowhere",), "there is no folder nowhere"),
        (("{empty}",), "holds neither checkpoints nor a model"),
        (("{model}",), "does not say what it was trained from: write NAME="),
        (("{model}", "--ref_model", "{model}"), "was not trained by sparsepo train: name it"),
        (("x={model}:./nowhere",), "its reference ./nowhere is not there"),
        (("x={model}:{empty}",), "holds no model (no config.json)"),
        (("{dpo}", "--baseline", "SFT"), "--baseline SFT: the methods are DPO"),
        (("{dpo}", "--checkpoints", "some"), "--checkpoints some: write all, last, or a number"),
        (("{dpo}", "--samples", 0), "--samples 0: must be at least 1"),
        (("{dpo}", "--budgets", 0), "a KL budget must be above 0"),
        (("{dpo}", "--reward", "nice"), "reward 'nice' is unknown"),
        (("{dpo}", "--reward", "classifier:./nowhere"), "no such folder"),
        (("{dpo}", "--prompts", "./no.txt"), "--prompts ./no.txt: there is no such file"),
        (("{dpo}", "--pairs", "./no.jsonl"), "--pairs ./no.jsonl: there is no such file"),
        (("{dpo}", "--content_words", "./no.txt"), "No file no.txt of words to mask"),
        (("{dpo}", "--max_new_tokens", 128), "more than the model's 128 positions"),
        (("{dpo}", "--output", "{prompts}"), "is a file; give a folder"),
    ],
)
def test_wrong_calls_fail_before_sampling(
    sparsepo: Call, runs: Path, model_folder: Path, tmp_path: Path, arguments: tuple[Any, ...], said: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    prompts = runs / "prompts.txt"
    names = {"empty": empty, "model": model_folder, "dpo": runs / "dpo", "prompts": prompts}
    given = [str(item).format(**names) for item in arguments]
    defaults = {"--prompts": prompts, "--reward": "playground", "--output": tmp_path / "out"}
    missing = [item for flag, value in defaults.items() if flag not in given for item in (flag, value)]
    result = sparsepo("frontier", *given, *missing, "--use_cpu")
    assert result.status == 1
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_help_says_what_is_read_off(sparsepo: Call) -> None:
    result = sparsepo("frontier", "--help")
    assert result.status == 0
    assert "the reward at matched KL, with the difference from the baseline" in result.out
