"""Prompts out of every accepted format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sparsepo.data import DataError, load_prompts

HH = "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "a"}, {"prompt": "b", "extra": 1}], ["a", "b"]),
        ([{"prompt": "a", "chosen": " x", "rejected": " y"}], ["a"]),
        ([{"chosen": f"{HH} well.", "rejected": f"{HH} busy."}], [HH]),
        ([{"prompt": "a", "text": "x", "reward": 1.0}, {"prompt": "a", "text": "y", "reward": 2.0}], ["a"]),
        ([{"history": "a", "human_ref_A": "x", "human_ref_B": "y", "labels": 1}], ["a"]),
        ([{"prompt": [{"role": "user", "content": "a"}]}], [[{"role": "user", "content": "a"}]]),
    ],
)
def test_every_format(tmp_path: Path, rows: list[dict[str, Any]], expected: list[Any]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_prompts(file)[0] == expected


def test_lines_of_a_text_file_repetitions_and_limits(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt.gz"
    file.write_bytes(gzip.compress(b"the film\n\nthe story \nthe film\nthe end\n"))
    prompts, counts = load_prompts(file)
    assert prompts == ["the film", "the story ", "the end"]
    assert counts == {"empty prompts": 1, "repeated prompts": 1}
    assert load_prompts(file, limit=2)[0] == ["the film", "the story "]


def test_what_holds_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="columns 'question' and no prompt; rename one"):
        load_prompts(tmp_path / "a.jsonl")
    assert load_prompts(tmp_path / "a.jsonl", columns={"question": "prompt"})[0] == ["a"]
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"holds no prompts .2 empty prompts"):
        load_prompts(tmp_path / "b.txt")
    with pytest.raises(DataError, match="No file"):
        load_prompts(tmp_path / "c.txt")
    with pytest.raises(DataError, match="limit=0"):
        load_prompts(tmp_path / "b.txt", limit=0)
    (tmp_path / "d.jsonl").write_text('{"chosen": " x", "rejected": " x"}\n')
    with pytest.raises(DataError, match="holds no prompts"):
        load_prompts(tmp_path / "d.jsonl")
