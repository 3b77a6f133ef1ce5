"""``sparsepo inspect --summary``, ``compare``, ``transfer`` and ``robustness``, and the pages that ``train`` leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsepo.cli.inspect_robustness import CHANGES, METHODS
from sparsepo.cli.main import main
from tests.cli.conftest import SHORT_RUN, Outcome

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, pairs_file: Path, held_out_file: Path
) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    arguments = ["train", *SHORT_RUN, "--model_name_or_path", model_folder, "--dataset_name", pairs_file,
                 "--eval_dataset", held_out_file, "--output_dir", out, "--inspect_pairs", "2"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    return out


def test_train_leaves_its_pages(run_folder: Path) -> None:
    report = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "sparsepo train" in report  # the command
    for part in ("Curves", "Example pairs", "Data", "Settings", "transformers"):
        assert part in report
    assert (run_folder / "pairs.html").is_file()
    assert (run_folder / "masks.html").is_file()
    assert len(list((run_folder / "mask_history").glob("step-*.jsonl"))) >= 2
    assert list((run_folder / "report_plots").glob("*.svg"))


def test_pages_can_be_left_out(sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    result = sparsepo("train", *SHORT_RUN, "--model_name_or_path", model_folder, "--dataset_name", pairs_file,
                      "--output_dir", tmp_path / "o", "--report", "false", "--inspect_pairs", 0)  # fmt: skip
    assert result.status == 0, result.err
    assert not list((tmp_path / "o").glob("*.html"))
    assert not (tmp_path / "o" / "mask_history").exists()


def test_a_cached_reference_and_an_objective_without_masks_have_reports_too(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, held_out_file: Path
) -> None:
    for name, more in {"cached": ["--precompute_ref", "true"], "dpo": ["--objective", "dpo"]}.items():
        result = sparsepo("train", *SHORT_RUN, "--model_name_or_path", model_folder, "--dataset_name", pairs_file,
                          "--eval_dataset", held_out_file, "--output_dir", tmp_path / name, *more)  # fmt: skip
        assert result.status == 0, result.err
        assert (tmp_path / name / "report.html").is_file()
        assert (tmp_path / name / "masks.html").is_file() == (name == "cached")


def test_summary_and_compare(
    sparsepo: Call, tmp_path: Path, run_folder: Path, model_folder: Path, held_out_file: Path
) -> None:
    for name, model in {"learned": run_folder, "mapo": model_folder}.items():
        result = sparsepo(
            "inspect", model, held_out_file, "--summary", "--name", name, "--show", 0, "--output", tmp_path / name
        )
        assert result.status == 0, result.err
        assert "exact zeros" in result.out
        assert json.loads((tmp_path / name / "summary.json").read_text())[name]["pairs"] > 0
        assert (tmp_path / name / "summary.html").is_file()
    result = sparsepo(
        "inspect", "compare", tmp_path / "learned", f"two={tmp_path / 'mapo'}", "--output", tmp_path / "cmp"
    )
    assert result.status == 0, result.err
    assert "learned and two" in result.out
    assert {"compare.html", "compare.json", "pairs.html", "plots"} == {
        path.name for path in (tmp_path / "cmp").iterdir()
    }


def test_code_has_its_own_classes(sparsepo: Call, tmp_path: Path, model_folder: Path) -> None:
    pair = ("the film", " is good", " is slow")  # "is" is a keyword, "good" a name
    result = sparsepo(
        "inspect", model_folder, "--pair", *pair, "--summary", "--language", "python", "--output", tmp_path
    )
    assert result.status == 0, result.err
    assert {"keyword", "name"} <= set(
        json.loads((tmp_path / "summary.json").read_text())[""]["masks"]["reward_mask"]["code"]
    )


def test_transfer_and_training_with_its_export(
    sparsepo: Call, tmp_path: Path, run_folder: Path, model_folder: Path, held_out_file: Path
) -> None:
    export = tmp_path / "weighted.jsonl"
    result = sparsepo(
        "inspect", "transfer", run_folder, model_folder, held_out_file, "--export", export, "--output", tmp_path / "t"
    )
    assert result.status == 0, result.err
    assert "A's mask" in result.out
    assert json.loads((tmp_path / "t" / "transfer.json").read_text())["pairs"] > 0
    result = sparsepo("train", *SHORT_RUN, "--model_name_or_path", model_folder, "--dataset_name", export,
                      "--output_dir", tmp_path / "o", "--mask", "data")  # fmt: skip
    assert result.status == 0, result.err


@pytest.mark.parametrize("check", ["noise", "adversarial"])
def test_robustness_of_a_model(sparsepo: Call, tmp_path: Path, run_folder: Path, pairs_file: Path, check: str) -> None:
    few = ("--changes", "typos", "neutral synonyms", "--rates", 0.5) if check == "noise" else ("--counts", 2)
    arguments = ("inspect", "robustness", check, run_folder, pairs_file, *few, "--output", tmp_path)
    result = sparsepo(*arguments)
    if check == "adversarial" and result.status:
        assert "words occur" in result.err  # this vocabulary is too small for twenty words twice: said, not hidden
        return
    assert result.status == 0, result.err
    assert "accuracy" in result.out
    assert (tmp_path / "robustness.html").is_file()
    again = sparsepo(*arguments)
    assert again.status == 0, again.err
    other = sparsepo(*arguments, "--seed", 5)
    assert other.status == 1
    assert "results of other seed" in other.err


@pytest.mark.parametrize("check", ["labels", "shift"])
def test_robustness_of_training(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, held_out_file: Path, check: str
) -> None:
    flips = ("--flips", 0, 0.4) if check == "labels" else ()
    sizes = ("--seeds", 0, "--steps", 2, "--max_length", 64, "--limit", 8, "--methods", "DPO", "SparsePO")
    files = (pairs_file, f"other={held_out_file}", held_out_file)
    arguments = ("inspect", "robustness", check, model_folder, *files, *flips, "--output", tmp_path, *sizes)
    result = sparsepo(*arguments)
    assert result.status == 0, result.err
    assert "reward accuracy on other" in result.out
    count = len(list((tmp_path / "runs").glob("*.json")))
    assert count == (4 if check == "labels" else 2)
    assert (tmp_path / "robustness.html").is_file()
    assert sparsepo(*arguments).out.count(" s\n") == 0  # nothing is run again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "MODEL"], "holds no tokens.parquet"),
        (["compare", "nowhere", "MODEL"], "there is no file or folder nowhere"),
        (["transfer", "MODEL", "DATA"], "Give model B to compare with, or --export FILE"),
        (["transfer", "MODEL", "DATA", "--export", "x.csv"], "must end in .jsonl"),
        (["robustness"], "check"),
        (["robustness", "noise", "MODEL", "DATA", "--rates", "1.5"], "must be a share from 0 to 1"),
        (["robustness", "noise", "MODEL", "DATA", "--changes", "rhymes"], "'rhymes' is not one of typos, case"),
        (["robustness", "labels", "MODEL", "DATA", "nowhere.jsonl", "--output", "x"], "there is no file nowhere.jsonl"),
        (["robustness", "labels", "MODEL", "DATA", "DATA", "DATA", "--output", "x"], "Two tests are called"),
        (["MODEL", "DATA", "--language", "python"], "--language has no effect without --summary"),
        (["MODEL", "DATA", "--summary", "--language", "klingon"], "language='klingon' is unknown"),
    ],
    ids=str,
)
def test_wrong_usage_is_named(
    sparsepo: Call, model_folder: Path, held_out_file: Path, arguments: list[str], message: str
) -> None:
    places = {"MODEL": str(model_folder), "DATA": str(held_out_file)}
    result = sparsepo("inspect", *(places.get(item, item) for item in arguments))
    assert result.status != 0
    assert message in result.err.replace("\n", " ")


def test_names_are_those_of_the_parts() -> None:
    from sparsepo.experiments.robustness import OBJECTIVES
    from sparsepo.inspection import perturb

    assert tuple(OBJECTIVES) == METHODS
    assert tuple(perturb.CHANGES) == CHANGES
