"""Labelled texts from archives, folders and rows."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from sparsepo.data import DataError
from sparsepo.data.labelled import read_labelled


def archive(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, text in files.items():
            opened.writestr(name, text)
    return path


def test_folders_name_classes(tmp_path: Path) -> None:
    files = {
        "r/pos/a.txt": "good\nvery good\n",
        "r/neg/b.txt": " bad ",
        "r/README.txt": "what it is",
        "r/pos/c.txt": " ",
    }
    expected = [("bad", "NEGATIVE"), ("good\nvery good", "POSITIVE")]
    assert read_labelled(archive(tmp_path / "a.zip", files)) == expected
    for name, text in files.items():
        place = tmp_path / "folder" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert read_labelled(tmp_path / "folder") == expected


def test_endings_name_classes_of_lines(tmp_path: Path) -> None:
    found = read_labelled(
        archive(tmp_path / "a.zip", {"x/s.neg": "bad\n\nworse\n", "x/s.pos": "good\n", "x/readme.txt": "x"})
    )
    assert found == [("bad", "NEGATIVE"), ("worse", "NEGATIVE"), ("good", "POSITIVE")]


def test_rows_with_labels_and_other_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "good", "label": "positive"}, {"text": " ", "label": "positive"}, {"text": "sport", "label": 3}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_labelled(file) == [("good", "POSITIVE"), ("sport", "3")]
    file.write_text(json.dumps({"prompt": "a", "text": "x", "reward": 1.0}) + "\n")
    assert read_labelled(file) is None
    file.write_text(json.dumps({"text": "x", "label": 0.5}) + "\n")
    with pytest.raises(DataError, match=r"label=0\.5 is neither"):
        read_labelled(file)
    with pytest.raises(DataError, match="all 1 texts have the label 'POSITIVE'"):
        read_labelled(archive(tmp_path / "a.zip", {"s.pos": "good\n"}))
    with pytest.raises(DataError, match="No file"):
        read_labelled(tmp_path / "nowhere.zip")


def test_real_archives(data_folder: Path) -> None:
    reviews = read_labelled(data_folder / "movie_reviews.zip")
    assert reviews is not None
    assert len(reviews) == 2000
    assert sum(label == "POSITIVE" for _, label in reviews) == 1000
    sentences = read_labelled(data_folder / "sentence_polarity.zip")
    assert sentences is not None
    assert len(sentences) == 10662
    assert sum(label == "POSITIVE" for _, label in sentences) == 5331
