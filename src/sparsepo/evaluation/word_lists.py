"""Sentiment words of real text: a yardstick that is no ground truth, but was made without any model.

VADER (Hutto & Gilbert 2014) gives a valence from −4 to 4; the opinion lexicon (Hu & Liu 2004) lists positive and negative
words. Both are read from their zip files as nltk_data has them; a word counts with its sign.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .text_spans import FUNCTION_WORDS, WORD, as_targets, first_tokens, real_tokens, token_spans, words_of
from .token_table import Batch, Description

LEAST_VALENCE = 1.0  # weaker words of VADER ("busy", "chance") are left out


@dataclass(frozen=True)
class SentimentWords:
    """Words, lower case, by sign."""

    positive: frozenset[str]
    negative: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """Both."""
        return self.positive | self.negative

    def sign(self, word: str) -> int:
        """1, −1, or 0 for a word in neither list."""
        word = word.lower()
        return (word in self.positive) - (word in self.negative)

    def joined(self, other: SentimentWords) -> SentimentWords:
        """The words of either; those on whose sign the two differ are left out."""
        positive, negative = self.positive | other.positive, self.negative | other.negative
        return SentimentWords(positive - negative, negative - positive)


def read_vader(path: str | Path, least: float = LEAST_VALENCE) -> SentimentWords:
    """VADER's words with |mean valence| ≥ ``least``; emoticons and other signs are left out.

    Raises:
        ValueError: no such list in the file.
    """
    valence = {}
    for line in _lines(path, "vader_lexicon.txt"):
        word, _, rest = line.partition("\t")
        if WORD.fullmatch(word):
            valence[word.lower()] = float(rest.split("\t")[0])
    return SentimentWords(
        frozenset(word for word, value in valence.items() if value >= least),
        frozenset(word for word, value in valence.items() if value <= -least),
    )


def read_opinion(path: str | Path) -> SentimentWords:
    """The opinion lexicon; words in both of its lists are left out.

    Raises:
        ValueError: no such lists in the file.
    """
    positive, negative = (
        frozenset(
            line.strip().lower()
            for line in _lines(path, f"{sign}-words.txt")
            if not line.startswith(";") and WORD.fullmatch(line.strip())
        )
        for sign in ("positive", "negative")
    )
    return SentimentWords(positive - negative, negative - positive)


def read_sentiment_words(vader: str | Path | None = None, opinion: str | Path | None = None) -> SentimentWords:
    """Both lists joined, or the one that is given.

    Raises:
        ValueError: none is given.
    """
    lists = [read_vader(vader)] if vader is not None else []
    lists += [read_opinion(opinion)] if opinion is not None else []
    if not lists:
        raise ValueError("vader=None and opinion=None: give the path of at least one word list.")
    return lists[0] if len(lists) == 1 else lists[0].joined(lists[1])


def word_marks(tokenizer: Any, words: SentimentWords) -> Description:
    """Describes the target tokens of collated batches by the words that they begin.

    The description has ``sentiment`` (first token of a word of the lists), ``positive_word``, ``negative_word``,
    ``word`` (first token of any word) and ``content`` (of a word that is no function word): a word is decided by its
    first token, and what continues or punctuates is easy to tell apart.
    """
    kinds: dict[str, Callable[[str], bool]] = {
        "sentiment": lambda word: words.sign(word) != 0 and word not in FUNCTION_WORDS,
        "positive_word": lambda word: words.sign(word) > 0 and word not in FUNCTION_WORDS,
        "negative_word": lambda word: words.sign(word) < 0 and word not in FUNCTION_WORDS,
        "word": lambda word: True,
        "content": lambda word: word not in FUNCTION_WORDS,
    }

    def describe(batch: Batch) -> dict[str, Tensor]:
        ids = batch["input_ids"].cpu()
        places = [real_tokens(batch, row) for row in range(len(ids))]
        marks: dict[str, list[list[bool]]] = {kind: [] for kind in kinds}
        for row, indices in enumerate(places):
            text, spans = token_spans(tokenizer, ids[row, indices].tolist())
            found = words_of(text)
            for kind, belongs in kinds.items():
                marks[kind].append(first_tokens(spans, [span for word, span in found if belongs(word)]))
        return {kind: as_targets(own, places, ids.shape) for kind, own in marks.items()}

    return describe


def _lines(path: str | Path, name: str) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        inside = [entry for entry in archive.namelist() if entry.rsplit("/", 1)[-1] == name]
        if not inside:
            raise ValueError(f"{path} holds no {name}; give the zip file of this word list as nltk_data has it.")
        return archive.read(inside[0]).decode("latin-1").splitlines()
