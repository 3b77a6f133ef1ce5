"""``sparsepo inspect``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.inspect import LAYERS
from sparsepo.inspection import QUANTITIES, read_records
from tests.cli.conftest import SHORT_RUN, Outcome

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, pairs_file: Path) -> Path:
    from sparsepo.cli.main import main

    out = tmp_path_factory.mktemp("trained") / "out"
    arguments: list[Any] = [
        "train",
        *SHORT_RUN,
        *("--model_name_or_path", model_folder, "--dataset_name", pairs_file, "--output_dir", out),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    return out


def test_a_trained_folder(sparsepo: Call, tmp_path: Path, trained_folder: Path, held_out_file: Path) -> None:
    result = sparsepo(
        "inspect", trained_folder, held_out_file, "--output", tmp_path / "new" / "out",
        "--format", "html", "parquet", "jsonl", "--show", 1, "--layer", "log_ratio",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert result.out.count("margin") == 1
    assert "log-ratio" in result.out
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["inspect.html", "tokens.jsonl", "tokens.parquet"]
    one, other = (list(read_records(folder / f"tokens.{ending}")) for ending in ("parquet", "jsonl"))
    assert [record.margin for record in one] == [record.margin for record in other]
    assert any(record.margin != 0 for record in one)
    assert f"({len(one)} pairs)" in result.out


def test_an_untrained_model_and_a_typed_pair(sparsepo: Call, model_folder: Path) -> None:
    result = sparsepo("inspect", model_folder, "--pair", "the film was", " good", " slow <script>")
    assert result.status == 0, result.err
    assert "its own reference" in result.out
    assert "₀" in result.out or "₉" in result.out


def test_words_are_masked_in_terminal_and_page_and_kept_in_the_table(
    sparsepo: Call, model_folder: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("film\nawful\n")
    pair = ("inspect", model_folder, "--pair", "the film was", " good and awful .", " dull", "--output", tmp_path)
    result = sparsepo(*pair, "--content_words", words)
    assert result.status == 0, result.err
    assert "Content notice" in result.out
    assert "a...." in result.out
    page = (tmp_path / "inspect.html").read_text()
    assert "the f... was" in page
    assert "awful" not in page
    assert "Content notice" in page
    (record,) = read_records(tmp_path / "tokens.parquet")
    assert "awful" in record.chosen.text
    assert record.prompt == "the film was"
    plain = sparsepo(*pair)
    assert "Content notice" not in plain.out
    assert "awful" in (tmp_path / "inspect.html").read_text()


def test_limit(sparsepo: Call, tmp_path: Path, model_folder: Path, held_out_file: Path) -> None:
    result = sparsepo("inspect", model_folder, held_out_file, "--limit", 2, "--output", tmp_path, "--show", 0)
    assert result.status == 0, result.err
    assert len(list(read_records(tmp_path / "tokens.parquet"))) == 2
    assert "margin" not in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give DATA, or --pair"),
        (["DATA", "--pair", "a", "b", "c"], "and not both"),
        (["--pair", "a", "", "c"], "must not be empty"),
        (["--pair", "a", "b", "c", "--split", "test"], "--split has no effect"),
        (["DATA", "--format", "html"], "--format has no effect without --output"),
        (["DATA", "--limit", "0"], "--limit 0: must be at least 1"),
        (["DATA", "--output", "DATA"], "is a file; give a folder"),
        (["DATA", "--objective", "dpo", "--layer", "kl_mask"], "no such values; choose one of log_ratio"),
    ],
    ids=str,
)
def test_wrong_usage_is_named(
    sparsepo: Call, model_folder: Path, held_out_file: Path, arguments: list[str], message: str
) -> None:
    filled = [str(held_out_file) if item == "DATA" else item for item in arguments]
    result = sparsepo("inspect", model_folder, *filled)
    assert result.status != 0
    assert message in result.err.replace("\n", " ")


def test_layers_are_those_of_the_records() -> None:
    assert tuple(QUANTITIES) == LAYERS
