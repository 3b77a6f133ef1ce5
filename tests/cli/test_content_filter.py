"""``--content_filter`` and ``--content_words`` wherever texts are shown: terminal and pages are masked, data are not."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import sparsepo
from sparsepo.cli.small_models import train_tokenizer
from sparsepo.inspection import read_records
from tests.cli.conftest import SHORT_RUN, Outcome, write_rows
from tests.support import tiny_model

Call = Callable[..., Outcome]
NOTICE = "Content notice"
# Every page that the library writes → the test (of this file unless named) that looks for masked words on it
PAGES = {
    "report.html": "test_pages_of_a_training_run",
    "pairs.html": "test_pages_of_a_training_run",
    "masks.html": "test_pages_of_a_training_run",
    "inspect.html": "test_inspect.py",
    "summary.html": "test_statistics_and_comparisons",
    "compare.html": "test_statistics_and_comparisons",
    "robustness.html": "test_inserted_words",
    "summaries.html": "test_summaries",
    "judge.html": "test_judge.py",
    "frontier.html": "test_frontier.py",
}
WITHOUT_TEXTS = ("transfer.html",)
TEMPLATES = ("head.html", "document.html", "frames.html")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("words") / "mine.txt"
    file.write_text("awful\n")
    return file


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that are full of one word, so that it is a frequent token type as well."""
    made = [
        {"prompt": "the awful film", "chosen": " was good and good", "rejected": f" was awful {'awful ' * n}slow"}
        for n in range(12)
    ]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, rows: Path, words: Path) -> Path:
    from sparsepo.cli.main import main

    out = tmp_path_factory.mktemp("run") / "out"
    arguments: list[Any] = ["train", *SHORT_RUN, "--model_name_or_path", model_folder, "--dataset_name", rows,
                            "--output_dir", out, "--content_words", words]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer keeps any text."""
    folder, tokenizer = tmp_path_factory.mktemp("byte_model"), train_tokenizer(["the film was good"] * 20, 270)
    tiny_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_pages_of_a_training_run(run_folder: Path) -> None:
    for name in ("report.html", "pairs.html", "masks.html"):
        page = read(run_folder / name)
        assert "awful" not in page, name
        assert "the a.... film" in page, name
        assert NOTICE in page, name
        assert "They are masked where texts are shown" in page, name
    kept = next((run_folder / "mask_history").glob("step-*.jsonl"))
    assert all(record.prompt == "the awful film" for record in read_records(kept))


def test_without_the_filter_a_training_run_only_announces(sparsepo: Call, tmp_path: Path, byte_model: Path) -> None:
    made = [{"prompt": "the film", "chosen": f" good {n}", "rejected": f" shit film {n}"} for n in range(4)]
    file = write_rows(tmp_path / "rows.jsonl", made)
    command = ("train", *SHORT_RUN, "--model_name_or_path", byte_model, "--dataset_name", file)
    result = sparsepo(*command, "--output_dir", tmp_path / "out")
    assert result.status == 0, result.err
    assert NOTICE in result.out.replace("\n", " ")
    for name in ("report.html", "pairs.html", "masks.html"):
        assert "--content_filter masks such words" in read(tmp_path / "out" / name), name
    assert "shit" in read(tmp_path / "out" / "report.html")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("content_filter: true\n")
    result = sparsepo(*command, "--output_dir", tmp_path / "masked", "--config", recipe)
    assert result.status == 0, result.err
    assert "shit" not in read(tmp_path / "masked" / "report.html")
    assert "s..." in read(tmp_path / "masked" / "report.html")


def test_examples_of_data_checks(sparsepo: Call, tmp_path: Path, model_folder: Path, words: Path) -> None:
    made = [{"prompt": "the film", "chosen": f" good {n}", "rejected": " slow"} for n in range(4)]
    file = write_rows(tmp_path / "rows.jsonl", [*made, {"prompt": "the film", "chosen": ["awful"], "rejected": " x"}])
    train = ("train", *SHORT_RUN, "--model_name_or_path", model_folder, "--output_dir", tmp_path / "out")
    masked = {
        "train": sparsepo(*train, "--dataset_name", file, "--content_words", words),
        "evaluate": sparsepo("evaluate", model_folder, file, "--ref_model", model_folder, "--content_words", words),
        "data check": sparsepo("data", "check", file, "--content_words", words),
    }
    for command, result in masked.items():
        assert "a...." in result.out, (command, result.err)
        assert "awful" not in result.out, command
    assert "awful" not in read(tmp_path / "out" / "report.html")
    assert "awful" in sparsepo("data", "check", file).out


def test_statistics_and_comparisons(
    sparsepo: Call, tmp_path: Path, run_folder: Path, model_folder: Path, rows: Path, words: Path
) -> None:
    for name, model in {"one": run_folder, "two": model_folder}.items():
        result = sparsepo(
            "inspect", model, rows, "--summary", "--show", 0, "--name", name, "--output", tmp_path / name,
            "--content_words", words,
        )  # fmt: skip
        assert result.status == 0, result.err
        assert "a...." in result.out
        assert "awful" not in result.out
        page = read(tmp_path / name / "summary.html")
        assert "a...." in page
        assert "awful" not in page
        assert "awful" in read(tmp_path / name / "summary.json")
    both = ("inspect", "compare", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both")
    assert sparsepo(*both, "--content_words", words).status == 0
    for name in ("compare.html", "pairs.html"):
        page = read(tmp_path / "both" / name)
        assert "awful" not in page, name
        assert "a...." in page, name
        assert NOTICE in page, name
    assert sparsepo(*both).status == 0
    assert "awful" in read(tmp_path / "both" / "compare.html")


def test_inserted_words(tmp_path: Path, words: Path) -> None:
    from rich.console import Console

    from sparsepo.cli.inspect_robustness import _show

    class Results:
        def get(self, name: str, make: Any) -> dict[str, list[str]]:
            return {"large masks": ["awful", "good"]}

    def shown(content_words: Path | None) -> list[str]:
        args = Namespace(
            check="adversarial", output=tmp_path, model="m", content_filter=False, content_words=content_words
        )
        console = Console(file=StringIO())
        _show(args, {"none": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}, Results(), console)
        return [read(tmp_path / "robustness.html"), console.file.getvalue()]  # type: ignore[attr-defined]

    assert all("awful, good" in text for text in shown(None))
    page, terminal = shown(words)
    assert all("a...., good" in text and "awful" not in text for text in (page, terminal))
    assert NOTICE in page


def test_summaries(sparsepo: Call, tmp_path: Path, words: Path) -> None:
    file = write_rows(
        tmp_path / "ready.jsonl",
        [{"prompt": f"an awful day {n}", "summary": "awful", "reference": "so awful"} for n in range(3)],
    )
    command = ("summaries", f"mine={file}", "--metrics", "length", "--output", tmp_path / "out")
    assert sparsepo(*command, "--content_words", words).status == 0
    page = read(tmp_path / "out" / "summaries.html")
    assert "awful" not in page
    assert page.count("an a.... day 0") == 2  # the fold's line and the document
    assert "so a...." in page
    assert NOTICE in page
    assert sparsepo(*command).status == 0
    assert "awful" in read(tmp_path / "out" / "summaries.html")
    assert NOTICE not in read(tmp_path / "out" / "summaries.html")  # the list knows no such word


@pytest.mark.parametrize("command", ["train", "summaries", "judge", "frontier", "inspect", "inspect compare"])
def test_a_missing_file_of_words_is_told_before_anything_is_loaded(
    sparsepo: Call, tmp_path: Path, model_folder: Path, rows: Path, run_folder: Path, command: str
) -> None:
    out = tmp_path / "out"
    arguments = {
        "train": [
            "--model_name_or_path",
            model_folder,
            "--dataset_name",
            rows,
            "--output_dir",
            out,
            "--report_to=none",
        ],
        "summaries": [rows, "--output", out],
        "judge": [rows, "--reward_model", "lexicon", "--output", out],
        "frontier": [run_folder, "--prompts", rows, "--reward", "playground", "--output", out],
        "inspect": [model_folder, rows, "--output", out],
        "inspect compare": [rows, rows, "--output", out],
    }[command]
    result = sparsepo(*command.split(), *arguments, "--content_words", tmp_path / "nowhere.txt")
    assert result.status == 1
    assert "nowhere.txt of words to mask" in result.err
    assert not out.exists()


def test_no_page_is_left_out() -> None:
    """A page that is added must be masked, or be known to show no texts."""
    source = Path(sparsepo.__file__).parent
    written = {
        name for file in source.rglob("*.py") for name in re.findall(r'"(?:[^"]*/)?([a-z_]+\.html)"', read(file))
    }
    assert written - set(TEMPLATES) == {*PAGES, *WITHOUT_TEXTS}
    here = Path(__file__)
    for test in PAGES.values():
        assert test in globals() or "--content_" in read(here.with_name(test))
