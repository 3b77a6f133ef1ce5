"""A small model in a folder, preference rows in files, and a way to call the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sparsepo.cli.main import main
from tests.support import preference_rows, tiny_model, tiny_tokenizer


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def sparsepo(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Call the command in this process: exit status and what it printed."""
    monkeypatch.delenv("SPARSEPO_DEBUG", raising=False)

    def call(*arguments: Any) -> Outcome:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs."""
    rows: list[dict[str, Any]] = list(preference_rows(16))  # type: ignore[arg-type]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight other pairs."""
    rows: list[dict[str, Any]] = list(preference_rows(8, seed=7))  # type: ignore[arg-type]
    return write_rows(tmp_path_factory.mktemp("held_out") / "held_out.jsonl", rows)


# What keeps a training run of the tests short and quiet
SHORT_RUN = (
    "--max_steps=2",
    "--per_device_train_batch_size=4",
    "--learning_rate=1e-3",
    "--logging_steps=1",
    "--save_strategy=no",
    "--report_to=none",
    "--activation_checkpointing=false",
    "--use_cpu",
)
