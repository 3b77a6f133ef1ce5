"""Texts of many kinds → rows for SFT; small models and tokenizers from nothing."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.base import CliError
from sparsepo.cli.small_models import SHAPES, model_from_config, train_tokenizer
from sparsepo.cli.texts import as_text, load_texts, sft_row
from tests.cli.conftest import write_rows

HH = "\n\nHuman: Hello?\n\nAssistant: Yes."


@pytest.mark.parametrize(
    ("row", "made"),
    [
        ({"text": "A text.", "label": 1}, {"text": "A text."}),
        ({"prompt": "P", "completion": "C"}, {"prompt": "P", "completion": "C"}),
        ({"prompt": "P", "chosen": " C", "rejected": "R"}, {"prompt": "P", "completion": " C"}),
        ({"prompt": "I found", "text": "it good", "reward": 1}, {"prompt": "I found", "completion": " it good"}),
        ({"prompt": "I found", "text": ", well", "reward": 1}, {"prompt": "I found", "completion": ", well"}),
        ({"chosen": HH, "rejected": HH}, {"prompt": "\n\nHuman: Hello?\n\nAssistant:", "completion": " Yes."}),
        ({"chosen": "\n\nHuman: Hello?\n\nAssistant: ", "rejected": HH}, None),
        ({"prompt": "P", "text": "  "}, None),
        ({"prompt": "P", "text": None}, None),
        ({"messages": [{"role": "user", "content": "Hi"}]}, {"messages": [{"role": "user", "content": "Hi"}]}),
        (
            {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        ),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Ho"}]},
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]},
        ),
    ],
)
def test_rows(row: dict[str, Any], made: dict[str, Any] | None) -> None:
    assert sft_row(row) == made


def test_a_row_of_no_known_kind_names_what_is_accepted() -> None:
    with pytest.raises(CliError, match=r"fields 'question'; accepted are text; prompt and completion"):
        sft_row({"question": "?"})


def test_files_zips_and_folders(tmp_path: Path) -> None:
    jsonl = write_rows(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    dataset, counts = load_texts([str(jsonl)])
    assert dataset["text"][:] == ["one", "two"]
    assert counts == {"used": 2, "left out (no text)": 1}
    with zipfile.ZipFile(tmp_path / "lines.zip", "w") as archive:
        archive.writestr("set/README.txt", "about")
        archive.writestr("set/data.pos", "first line\n\nsecond line\n")
        archive.writestr("set/data.neg", "caf\u00e9".encode("latin-1"))
    assert load_texts([str(tmp_path / "lines.zip")])[0]["text"][:] == ["caf\u00e9", "first line", "second line"]
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        for number in range(20):
            archive.writestr(f"set/{number:02}.txt", f"text {number}\nin two lines\n")
    assert load_texts([str(tmp_path / "files.zip")])[0]["text"][3] == "text 3\nin two lines"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a line\nanother")
    write_rows(tmp_path / "folder" / "b.jsonl", [{"prompt": "I found", "text": "it good"}])
    mixed = load_texts([str(tmp_path / "folder")])[0]
    assert mixed["text"][:] == ["I found it good", "a line", "another"]  # different kinds become texts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.jsonl", None, "no such file or folder"),
        ("broken.zip", b"no zip", "not a readable zip"),
        ("binary.txt", b"a\0b", "is not a text file"),
        ("empty.txt", b"\n\n", "no texts found"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CliError, match=said):
        load_texts([str(tmp_path / name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CliError, match="holds neither data files"):
        load_texts([str(tmp_path / "empty")])


def test_the_project_s_real_files(data_folder: Path) -> None:
    counts = {}
    for name in ("movie_reviews.zip", "sentence_polarity.zip", "imdb_scored.jsonl.gz", "hh_harmless.jsonl.gz"):
        dataset, _ = load_texts([str(data_folder / name)])
        counts[name] = (len(dataset), tuple(sorted(dataset.column_names)))
    assert counts["movie_reviews.zip"] == (2000, ("text",))
    assert counts["sentence_polarity.zip"] == (10662, ("text",))
    with gzip.open(data_folder / "imdb_scored.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert counts["imdb_scored.jsonl.gz"] == (sum(bool(row["text"].strip()) for row in rows), ("completion", "prompt"))
    assert counts["hh_harmless.jsonl.gz"][1] == ("completion", "prompt")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["the film was good", "the story was bad"] * 5, 280)


def test_a_trained_tokenizer_writes_every_text(tokenizer: Any) -> None:
    assert 258 <= len(tokenizer) <= 280
    for text in ("the film", " two  spaces\n\tand ünïcödé 🙂", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token != tokenizer.pad_token
    with pytest.raises(CliError, match="must be at least 258"):
        train_tokenizer(["a"], 100)


@pytest.mark.parametrize("shape", SHAPES)
def test_named_shapes(shape: str, tokenizer: Any) -> None:
    import torch

    model = model_from_config(shape, tokenizer, seed=0)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    wanted = float(shape.split("-")[1].removesuffix("m"))
    assert 0.3 * wanted < millions < 1.2 * wanted  # the name counts a larger vocabulary
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    again = model_from_config(shape, tokenizer, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_shape_from_a_file(tmp_path: Path, model_folder: Path, tokenizer: Any) -> None:
    assert model_from_config(str(model_folder / "config.json"), tokenizer, 0).config.n_embd == 32
    assert model_from_config(str(model_folder), tokenizer, 0).config.vocab_size == len(tokenizer)
    for content, said in (("{", "not valid JSON"), ("{}", "must be a JSON object with model_type"),
                          ('{"model_type": "vit"}', "makes no causal language model")):  # fmt: skip
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CliError, match=said):
            model_from_config(str(tmp_path / "config.json"), tokenizer, 0)
    with pytest.raises(CliError, match="did you mean gpt2-4m"):
        model_from_config("gpt2-4", tokenizer, 0)


def test_texts_of_rows() -> None:
    assert as_text({"prompt": "a", "completion": " b"}) == "a b"
    assert as_text({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) == "a\n\nb"
