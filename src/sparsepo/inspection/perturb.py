"""Noise on texts, word by word, so that what became of each word is known: typos, case, dropout, neutral synonyms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparsepo.evaluation.text_spans import FUNCTION_WORDS

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Words that can stand for one another in most places and say nothing about liking: both directions
_PAIRS = """
    film movie|films movies|also too|but though|because since|around about|while whilst|often frequently|start begin|
    started began|big large|little small|quick fast|kid child|kids children|maybe perhaps|nearly almost|shown displayed|
    whole entire|main central|talk speak|talks speaks|look appear|looks appears|buy purchase|help assist|need require|
    needs requires|use employ|show display|end finish|ends finishes|get obtain|try attempt|tries attempts|make create|
    makes creates|keep retain|part portion|place spot|story tale|people folks|person individual|house home|job work|
    car vehicle|town village|picture image|mom mother|dad father|however nevertheless|usually normally|actually really|
    simply just|instead rather|second other|sometimes occasionally|answer reply|question query|thing item|things items|
    problem issue|problems issues|reason cause|amount quantity|sum total|number count|check test|value figure
"""
SYNONYMS: dict[str, str] = {}
for _pair in _PAIRS.replace("\n", "").split("|"):
    _one, _other = _pair.split()
    SYNONYMS.setdefault(_one, _other)
    SYNONYMS.setdefault(_other, _one)


@dataclass(frozen=True)
class Perturbed:
    """A text after noise.

    Args:
        text: the new text.
        words: for each word of the old text that is left: (its span in the old text, its span in the new one).
        changed: of how many words something was changed or dropped.
    """

    text: str
    words: list[tuple[tuple[int, int], tuple[int, int]]]
    changed: int


Change = Callable[[str, np.random.Generator], str | None]  # a word → what it becomes; None: it is dropped


def perturb(text: str, change: Change, rate: float, rng: np.random.Generator) -> Perturbed:
    """Apply a change to each word with a probability.

    Args:
        text: any text; what is no word stays.
        change: see :data:`CHANGES`; a word that it returns as it was counts as unchanged.
        rate: in [0, 1].
        rng: draws the words; as many numbers whatever the change does.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate!r} must lie in [0, 1].")
    parts: list[str] = []
    words = []
    changed = length = last = 0
    for match in _WORD.finditer(text):
        between = text[last : match.start()]
        word: str | None = match.group()
        if rng.random() < rate:
            word = change(match.group(), rng)
            changed += word != match.group()
        if word is None:  # a dropped word takes the space before it along
            between = between[:-1] if between.endswith(" ") else between
        parts.append(between)
        length += len(between)
        if word is not None:
            words.append((match.span(), (length, length + len(word))))
            parts.append(word)
            length += len(word)
        last = match.end()
    return Perturbed("".join(parts) + text[last:], words, changed)


def typo(word: str, rng: np.random.Generator) -> str:
    """Two neighbours change places, or a letter is lost, doubled or replaced."""
    if len(word) < 3:
        return word
    place = int(rng.integers(len(word) - 1))
    kind = int(rng.integers(4))
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    if kind == 2:
        return word[: place + 1] + word[place:]
    return word[:place] + chr(ord("a") + int(rng.integers(26))) + word[place + 1 :]


def change_case(word: str, rng: np.random.Generator) -> str:
    """Upper case; what is upper case already becomes lower case."""
    return word.lower() if word.isupper() else word.upper()


def drop(word: str, rng: np.random.Generator) -> None:
    """The word goes."""
    return


def synonym(word: str, rng: np.random.Generator) -> str:
    """A word of :data:`SYNONYMS`, its case kept; others stay."""
    other = SYNONYMS.get(word.lower())
    if other is None:
        return word
    return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other


def drop_function_word(word: str, rng: np.random.Generator) -> str | None:
    """The word goes if it has no content of its own (an article, a pronoun, an auxiliary …)."""
    return None if word.lower() in FUNCTION_WORDS else word


CHANGES: dict[str, Change] = {
    "typos": typo,
    "case": change_case,
    "dropped words": drop,
    "dropped function words": drop_function_word,
    "neutral synonyms": synonym,
}


def insert_words(text: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """The text with words put between its own, each at a place of its own choice, none before the first word."""
    for word in words:
        ends = [match.end() for match in _WORD.finditer(text)] or [len(text)]
        place = ends[int(rng.integers(len(ends)))]
        text = f"{text[:place]} {word}{text[place:]}"
    return text


def words_of_text(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Words and their places."""
    return [(match.group(), match.span()) for match in _WORD.finditer(text)]
