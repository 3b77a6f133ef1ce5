"""Marks on the tokens of real text: spans, word lists, edits; and the controls beside them."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsepo.cli.small_models import train_tokenizer
from sparsepo.evaluation.edited_spans import SENTIMENT_GROUPS, OppositeWords, edit_pair, edit_pairs, edited_marks
from sparsepo.evaluation.text_spans import first_tokens, token_spans, words_of
from sparsepo.evaluation.word_lists import (
    SentimentWords,
    read_opinion,
    read_sentiment_words,
    read_vader,
    word_marks,
)

WORDS = SentimentWords(
    frozenset({"good", "great", "charming", "enjoyed", "wonderful"}), frozenset({"bad", "boring", "hated", "dreadful"})
)
TEXTS = [
    "The film was good, and I enjoyed the charming café scenes – naïve but Great.",
    "A boring, BAD plot: nobody's acting was unwatchably dreadful!",
    "日本 and 'quotes'  double  spaces\nnew lines",
]


@pytest.fixture(scope="module")
def bpe() -> Any:
    """Byte-level, so small that words and characters fall apart into several tokens."""
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_stand_where_their_text_does(bpe: Any, text: str) -> None:
    ids = bpe(text)["input_ids"]
    found, spans = token_spans(bpe, [*ids, bpe.eos_token_id])
    assert found == text
    assert "".join(text[start:end] for start, end in spans) == text
    assert spans[-1][0] == spans[-1][1] == len(text)  # special tokens stand nowhere
    offsets = bpe(text, return_offsets_mapping=True)["offset_mapping"]
    if text.isascii():
        assert spans[:-1] == [tuple(pair) for pair in offsets]


def test_the_first_token_of_a_stretch_is_marked() -> None:
    spans = [(0, 3), (3, 5), (5, 5), (5, 9), (9, 10)]
    assert first_tokens(spans, [(3, 9)]) == [False, True, False, False, False]
    assert first_tokens(spans, [(6, 7), (0, 1)]) == [True, False, False, True, False]
    assert first_tokens(spans, [(40, 50)]) == [False] * 5
    assert first_tokens(spans, []) == [False] * 5


def batch_of(bpe: Any, prompt: str, responses: list[str], row_id: int = 0) -> dict[str, torch.Tensor]:
    """Right-padded sequences as a collator makes them, end token included."""
    prompt_ids = bpe(prompt)["input_ids"]
    rows = [prompt_ids + bpe(text)["input_ids"] + [bpe.eos_token_id] for text in responses]
    width = max(map(len, rows))
    ids, attention, completion = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        attention[number, : len(row)] = 1
        completion[number, len(prompt_ids) : len(row)] = 1
    identity = torch.full((len(rows) // 2,), row_id)
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion, "row_id": identity}


def marked_text(bpe: Any, batch: dict[str, torch.Tensor], marks: torch.Tensor, row: int) -> list[str]:
    """Texts from each marked target token to the end of its sequence."""
    ids = batch["input_ids"][row]
    length = int(batch["attention_mask"][row].sum())
    places = torch.nonzero(marks[row]).flatten().tolist()
    return [bpe.decode(ids[place + 1 : length], skip_special_tokens=True).strip() for place in places]


def test_word_marks_find_words_by_their_first_tokens(bpe: Any) -> None:
    batch = batch_of(bpe, "The", [" film was good, and Great", " boring BAD plot was the unwatchably"])
    marks = word_marks(bpe, WORDS)(batch)
    assert [t.split()[0] for t in marked_text(bpe, batch, marks["sentiment"], 0)] == ["good,", "Great"]
    assert [t.split()[0] for t in marked_text(bpe, batch, marks["negative_word"], 1)] == ["boring", "BAD"]
    assert not marks["positive_word"][1].any()
    content = [t.split()[0] for t in marked_text(bpe, batch, marks["content"], 1)]
    assert content == ["boring", "BAD", "plot", "unwatchably"]
    assert marks["word"].shape == (2, batch["input_ids"].shape[1] - 1)
    assert not (marks["content"] & ~marks["word"]).any()


def test_lists_are_read_from_their_zip_files(tmp_path: Path) -> None:
    vader, opinion = tmp_path / "vader.zip", tmp_path / "opinion.zip"
    with zipfile.ZipFile(vader, "w") as archive:
        archive.writestr(
            "v/vader_lexicon.txt", ":)\t2.0\t1\t[2]\nGood\t1.9\t1\t[2]\nbusy\t-0.2\t1\t[0]\nbad\t-2.5\t1\t[-3]\n"
        )
    with zipfile.ZipFile(opinion, "w") as archive:
        archive.writestr("o/positive-words.txt", "; comment\n\ngreat\na+\nboth\nbad\n")
        archive.writestr("o/negative-words.txt", "; comment\nna\xefve\nboring\nboth\n".encode("latin-1"))
    assert read_vader(vader) == SentimentWords(frozenset({"good"}), frozenset({"bad"}))
    assert read_opinion(opinion).positive == {"great", "bad"}
    both = read_sentiment_words(vader, opinion)
    assert both.positive == {"good", "great"}
    assert both.negative == {"boring"}  # the lists differ about "bad"
    assert (both.sign("GOOD"), both.sign("boring"), both.sign("plot")) == (1, -1, 0)
    with pytest.raises(ValueError, match="vader_lexicon"):
        read_vader(opinion)
    with pytest.raises(ValueError, match="at least one"):
        read_sentiment_words()


def test_real_lists(data_folder: Path) -> None:
    words = read_sentiment_words(data_folder / "vader_lexicon.zip", data_folder / "opinion_lexicon.zip")
    assert len(words.positive) > 2000
    assert len(words.negative) > 4000
    for word, sign in (("excellent", 1), ("wonderful", 1), ("boring", -1), ("awful", -1), ("film", 0)):
        assert words.sign(word) == sign, word


GROUPS = [(("good", "great", "charming"), ("bad", "boring")), (("enjoyed",), ("hated",))]


def test_edits_are_known_and_decide_the_preference() -> None:
    opposite = OppositeWords(GROUPS)
    text = " It was good: I enjoyed it, CHARMING but so very, very bad."
    pair = edit_pair("p", text, opposite, random.Random(0))
    assert pair is not None
    assert pair.chosen == text  # the positive words, of which there are more, were replaced
    for spans, response in ((pair.chosen_spans, pair.chosen), (pair.rejected_spans, pair.rejected)):
        assert len(spans) == 3
        rest = response
        for start, end in reversed(spans):
            rest = rest[:start] + "#" + rest[end:]
        assert rest == " It was #: I # it, # but so very, very bad."
    first, second, third = (pair.rejected[start:end] for start, end in pair.rejected_spans)
    assert first in ("bad", "boring")
    assert second == "hated"  # the same part of speech
    assert third in ("BAD", "BORING")
    negative = edit_pair("p", " bad and boring", opposite, random.Random(0))
    assert negative is not None
    assert negative.rejected == " bad and boring"
    one = edit_pair("p", text, opposite, random.Random(0), share=0.01)
    assert one is not None
    assert len(one.chosen_spans) == 1
    assert edit_pair("p", " nothing here", opposite, random.Random(0)) is None
    assert len(edit_pairs([("p", text), ("p", " nothing")], opposite)) == 1
    assert edit_pairs([("p", text)], opposite, seed=1) == edit_pairs([("p", text)], opposite, seed=1)
    with pytest.raises(ValueError, match="share=0"):
        edit_pair("p", text, opposite, random.Random(0), share=0)
    with pytest.raises(ValueError, match="'good' twice"):
        OppositeWords([(("good",), ("bad",)), (("good",), ("evil",))])


@pytest.mark.parametrize("text", ["not good", "isn't at all good", "It was never a good", "no good"])
def test_words_after_a_negation_are_left_alone(text: str) -> None:
    assert OppositeWords(GROUPS).in_text(text) == []


def test_words_before_a_negation_or_far_from_it_are_not() -> None:
    found = OppositeWords(GROUPS).in_text("good, not that I would have enjoyed it")
    assert [word for word, _ in found] == ["good", "enjoyed"]


def test_the_groups_agree_with_the_word_lists(data_folder: Path) -> None:
    words = read_sentiment_words(data_folder / "vader_lexicon.zip", data_folder / "opinion_lexicon.zip")
    opposite = OppositeWords()
    known = [(opposite.sign(w), words.sign(w)) for pair in SENTIMENT_GROUPS for own in pair for w in own]
    assert all(listed in (0, sign) for sign, listed in known)
    assert sum(listed != 0 for _, listed in known) > 0.8 * len(known)


def test_edited_tokens_are_marked_in_batches(bpe: Any) -> None:
    pair = edit_pair("The film:", " It was good and I enjoyed it", OppositeWords(GROUPS), random.Random(0))
    assert pair is not None
    batch = batch_of(bpe, pair.prompt, [pair.chosen, pair.rejected], row_id=7)
    marks = edited_marks(bpe, {7: pair})(batch)["edited"]
    assert [t.split()[0] for t in marked_text(bpe, batch, marks, 0)] == ["good", "enjoyed"]
    rejected = [t.split()[0] for t in marked_text(bpe, batch, marks, 1)]
    assert rejected == [pair.rejected[start:end] for start, end in pair.rejected_spans]
    assert pair.row()["chosen_weights"] == [[8, 12, 1.0], [19, 26, 1.0]]


def test_words_have_places() -> None:
    assert words_of("Don’t be BAD-ish") == [("don't", (0, 5)), ("be", (6, 8)), ("bad", (9, 12)), ("ish", (13, 16))]
