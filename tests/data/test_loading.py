from __future__ import annotations

import csv
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from sparsepo.data import DataError, format_of, load_preference_data
from tests.data.data_support import shared_file, write_lines

PAIRS = [{"prompt": f"p{i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(10)]
CHAT = [
    {
        "prompt": [{"role": "user", "content": f"q{i}"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for i in range(3)
]


def write_as(folder: Path, kind: str) -> Path:
    path = folder / f"pairs{kind}"
    text = "".join(json.dumps(row) + "\n" for row in PAIRS)
    if kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == ".json":
        path.write_text(json.dumps(PAIRS))
    elif kind == ".wrapped.json":
        path.write_text(json.dumps({"version": 1, "data": PAIRS}))
    elif kind == ".lines.json" or kind == ".jsonl":
        path.write_text(text)
    elif kind in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(PAIRS[0]), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(PAIRS)
    else:
        Dataset.from_list(PAIRS).to_parquet(path)
    return path


KINDS = (".jsonl", ".jsonl.gz", ".json", ".wrapped.json", ".lines.json", ".csv", ".tsv", ".parquet")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(tmp_path: Path, kind: str, streaming: bool) -> None:
    dataset = load_preference_data(str(write_as(tmp_path, kind)), streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert list(dataset) == PAIRS
    assert format_of(dataset).kind == "preference"


def test_folder_lists_and_splits(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-0.jsonl", PAIRS[:4])
    write_lines(tmp_path / "train-1.jsonl", PAIRS[4:8])
    write_lines(tmp_path / "test.jsonl", PAIRS[8:])
    (tmp_path / "notes.md").write_text("not data")
    assert list(load_preference_data(tmp_path)) == PAIRS[:8]
    assert list(load_preference_data(tmp_path, split="test")) == PAIRS[8:]
    assert list(load_preference_data(tmp_path, split="train[2:50%]")) == PAIRS[2:4]
    assert list(load_preference_data([tmp_path / "train-1.jsonl"])) == PAIRS[4:8]
    with pytest.raises(DataError, match=r"No split 'validation' among .*; there are: test, train\."):
        load_preference_data(tmp_path, split="validation")
    with pytest.raises(DataError, match="split 'train\\[a:b\\]' is not understood"):
        load_preference_data(tmp_path, split="train[a:b]")
    with pytest.raises(DataError, match="cannot be sliced"):
        load_preference_data(tmp_path, split="train[:2]", streaming=True)


def test_saved_to_disk(tmp_path: Path) -> None:
    DatasetDict({"a": Dataset.from_list(PAIRS), "b": Dataset.from_list(PAIRS[:2])}).save_to_disk(
        str(tmp_path / "saved")
    )
    assert len(load_preference_data(tmp_path / "saved", split="b")) == 2
    with pytest.raises(DataError, match="has the splits a, b; choose one"):
        load_preference_data(tmp_path / "saved")


def test_hub_ids_go_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fake(source: str, **options: Any) -> Any:
        calls.append((source, options))
        return DatasetDict({"train": Dataset.from_list(PAIRS), "test": Dataset.from_list(PAIRS[:1])})

    monkeypatch.setattr("datasets.load_dataset", fake)
    assert len(load_preference_data("owner/set", name="conf", data_dir="part")) == 10
    options = {"name": "conf", "split": None, "streaming": False, "data_dir": "part", "revision": None}
    assert calls == [("owner/set", options)]


def test_hub_failure_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mypairs").mkdir()
    with pytest.raises(DataError, match=r"'mypair' is no local file.*hub failed: ConnectionError: no network.*mypairs"):
        load_preference_data("mypair")


@pytest.mark.parametrize(
    ("rows", "kind", "conversational", "implicit"),
    [
        (PAIRS, "preference", False, False),
        (CHAT, "preference", True, False),
        ([{k: v for k, v in row.items() if k != "prompt"} for row in PAIRS], "preference", False, True),
        ([{**row, "prompt": "q"} for row in CHAT], "preference", True, True),
        (
            [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}],
            "hh_transcript",
            0,
            1,
        ),
        ([{"prompt": "a", "text": "b", "reward": 1}], "scored", False, False),
        ([{"prompt": "a", "completion": "b", "score": 1}], "scored", False, False),
        ([{"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 1}], "votes", False, False),
    ],
)
def test_formats(tmp_path: Path, rows: list, kind: str, conversational: bool, implicit: bool) -> None:
    path = write_lines(tmp_path / "x.jsonl", rows)
    form = format_of(load_preference_data(path, kinds=("preference", "hh_transcript", "scored", "votes")))
    assert (form.kind, form.conversational, form.implicit_prompt) == (kind, bool(conversational), bool(implicit))


def test_format_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_preference_data(write_lines(tmp_path / "x.jsonl", CHAT))
    assert "preference pairs, conversational" in caplog.text


def bad(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = json.dumps(PAIRS[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", f"{GOOD}\n\n{{broken\n", r"x\.jsonl, line 3: not valid JSON .*'\{broken'"),
        ("x.jsonl", f"{GOOD}\n[1]\n", r"x\.jsonl, line 2: a row must be an object with named fields, found list"),
        ("x.json", '[{"chosen": 1},\n oops]', r"x\.json, line 2: not valid JSON"),
        ("x.json", f"[{GOOD}, 3]", r"x\.json, entry 2: a row must be an object"),
        ("x.json", '"text"', "must hold an array of objects, found str"),
        ("x.csv", "prompt,chosen,rejected\na,b\n", r"x\.csv, line 2: 2 fields, the header names 3"),
        ("x.csv", 'prompt,chosen,rejected\na,"b" c,d\n', r"x\.csv, line 2: "),
        ("x.parquet", "nothing", r"x\.parquet: not a readable Parquet file"),
        ("x.jsonl.gz", "nothing", r"x\.jsonl\.gz: the gzip file is damaged"),
        ("x.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], r"x\.jsonl\.gz: the gzip file is damaged"),
        ("x.jsonl", b'{"prompt": "\xff"}\n', r"x\.jsonl: not UTF-8 text"),
        ("x.jsonl", "", r"x\.jsonl holds no rows"),
        ("x.txt", "text", r"x\.txt: the name ends in no known way; give JSON"),
        ("x.jsonl", '{"question": "a", "answer": "b"}\n', "has the columns 'question', 'answer'; accepted are\n"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_preference_data(bad(tmp_path, name, content))


def test_missing_files_suggest_near_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"No file .*pair\.jsonl\. Did you mean .*pairs\.jsonl\?"):
        load_preference_data(tmp_path / "pair.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        load_preference_data(tmp_path / "no" / "pair.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        load_preference_data(tmp_path / "empty")
    with pytest.raises(DataError, match="list of data files is empty"):
        load_preference_data([])


def test_scored_rows_are_refused_with_the_mend(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"prompt": "a", "text": "b", "reward": 1}])
    with pytest.raises(DataError, match="make pairs first: `sparsepo data pairs"):
        load_preference_data(path)
    with pytest.raises(DataError, match="holds preference pairs, plain text; expected scored"):
        load_preference_data(write_lines(tmp_path / "y.jsonl", PAIRS), kinds=("scored",))


def test_rename(tmp_path: Path) -> None:
    rows = [{"question": "a", "chosen": "b", "rejected": "c"}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    for streaming in (False, True):
        renamed = load_preference_data(path, columns={"question": "prompt"}, streaming=streaming)
        assert next(iter(renamed)) == {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match="no column 'ask' to rename to 'prompt'; it has question, chosen, rejected"):
        load_preference_data(path, columns={"ask": "prompt"})


@pytest.mark.parametrize("streaming", [False, True])
def test_values_of_the_wrong_type_do_not_stop_the_load(tmp_path: Path, streaming: bool) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in PAIRS]
    rows[2]["chosen"] = 5
    rows[3]["prompt"] = ["a"]
    rows[4]["extra"] = {"a": 1}
    rows[5]["extra"] = "text"
    loaded = list(load_preference_data(write_lines(tmp_path / "x.jsonl", rows), streaming=streaming))
    assert loaded[2]["chosen"] is None
    assert loaded[2]["load_problem"] == "chosen is a number (5), not text"
    assert loaded[3]["load_problem"] == "prompt is a list (['a']), not text"
    assert loaded[4]["extra"] == '{"a": 1}'
    assert loaded[0].get("load_problem") is None


def test_messages_of_the_wrong_type(tmp_path: Path) -> None:
    rows = [json.loads(json.dumps(row)) for row in CHAT]
    rows[1]["chosen"][0]["content"] = 7
    loaded = load_preference_data(write_lines(tmp_path / "x.jsonl", rows))
    assert loaded[1]["load_problem"] == "chosen[0].content is a number (7), not text"


def test_real_files() -> None:
    scored = load_preference_data(shared_file("imdb_scored.jsonl.gz"), kinds=("scored",))
    assert (len(scored), format_of(scored).kind) == (2050, "scored")
    assert format_of(load_preference_data(shared_file("hh_harmless.jsonl.gz"))).kind == "hh_transcript"
