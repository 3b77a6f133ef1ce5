"""Offensive words: found by category, masked in place, announced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.data import DataError
from sparsepo.data.content import CATEGORIES, ContentFilter, content_notice


def test_words_become_a_letter_and_dots() -> None:
    own = ContentFilter()
    assert own.mask("You STUPID Bastard, shitty suicidal") == "You STUPID B......, s..... s......."
    for text in (
        "a cumbersome class of classic assets",
        "Scunthorpe is in Essex",
        "grape",
        "the spice",
        "a prickly pear",
    ):
        assert own.mask(text) == text
        assert own.categories_of(text) == []
    assert own.categories_of("murdered by a bitch") == ["profanity", "violence"]


def test_own_words_and_fewer_categories(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# mine\nBroccoli\n\nbad day\n")
    own = ContentFilter.from_file(file, categories=["slurs"])
    assert own.mask("broccoli on a bad day, broccolini, shit") == "b....... on a b.. ..., broccolini, shit"
    with pytest.raises(DataError, match="category rude is unknown; choose from profanity"):
        ContentFilter(categories=["rude"])
    with pytest.raises(DataError, match="A word of the filter is empty"):
        ContentFilter([" "])
    with pytest.raises(DataError, match="No file"):
        ContentFilter.from_file(tmp_path / "nowhere.txt")
    assert ContentFilter(categories=[]).mask("shit") == "shit"


@given(st.lists(st.sampled_from(["fuck", "ing", " ", "film", "ba", "stard", "\n", "é", "!"]), max_size=12))
def test_masking_keeps_lengths_and_pieces(pieces: list[str]) -> None:
    own = ContentFilter()
    text = "".join(pieces)
    masked = own.mask(text)
    assert len(masked) == len(text)
    assert own.mask(masked) == masked
    found = own.mask_pieces(pieces)
    assert "".join(found) == masked
    assert [len(piece) for piece in found] == [len(piece) for piece in pieces]
    assert all(a == b or b == "." for a, b in zip(text, masked, strict=True))


def test_notices() -> None:
    assert content_notice(["a film", "a story"]) == ""
    said = content_notice(["a film", "shit and murder", "bullshit"])
    assert "in 2 of 3 texts (profanity: 2, violence: 1)" in said
    assert content_notice(["shit", *["a film"] * 200]) == ""  # one word in a large set is no kind of data
    assert content_notice([]) == ""


def test_stems_are_plain_words() -> None:
    assert all(re.fullmatch(r"[a-z]+\|?", stem) for own in CATEGORIES.values() for stem in own)


def test_real_data_are_announced_where_they_should_be(data_folder: Path) -> None:
    from sparsepo.data import load_preference_data

    def notice(name: str) -> str:
        rows = load_preference_data(data_folder / name, kinds=("hh_transcript", "scored"))
        return content_notice(" ".join(str(value) for value in row.values()) for row in rows)

    assert notice("hh_harmless.jsonl.gz")
    assert notice("toxicity_scored.jsonl.gz")
