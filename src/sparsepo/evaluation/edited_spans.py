"""Pairs whose deciding tokens are known on real text: a text against itself with known words replaced.

Sentiment words of a text are replaced by words of the opposite sign. The more positive of the two texts is chosen, so
the preference follows from the replaced spans and from nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .text_spans import (
    FUNCTION_WORDS,
    Span,
    as_targets,
    first_tokens,
    real_tokens,
    response_start,
    token_spans,
    words_of,
)
from .token_table import Batch, Description
from .word_lists import SentimentWords

# endings by which a word's part of speech is guessed, longest first
ENDINGS = ("ingly", "ness", "less", "able", "ible", "ment", "ful", "ous", "ing", "ive", "ly", "ed", "er", "al", "s", "")


@dataclass(frozen=True)
class EditedPair:
    """A pair, with the replaced spans in characters of each response.

    Args:
        prompt: of both.
        chosen, rejected: responses.
        chosen_spans, rejected_spans: where they differ.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_spans: tuple[Span, ...]
    rejected_spans: tuple[Span, ...]

    def row(self) -> dict[str, Any]:
        """In TRL's preference format, with the spans as weights for ``mask='data'`` (the oracle)."""
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "chosen_weights": [[start, end, 1.0] for start, end in self.chosen_spans],
            "rejected_weights": [[start, end, 1.0] for start, end in self.rejected_spans],
        }


class OppositeWords:
    """For a sentiment word, words of the other sign with the same ending, as a rough sign of the part of speech.

    Args:
        words: the lists.
        allowed: words that may be put in, such as those that occur in a corpus (rare words would give edits away);
            None: all.
    """

    def __init__(self, words: SentimentWords, allowed: Iterable[str] | None = None) -> None:
        keep = None if allowed is None else frozenset(allowed)
        self.words = words
        self._by_ending: dict[tuple[int, str], list[str]] = {}
        for sign, own in ((1, words.positive), (-1, words.negative)):
            for word in sorted(own):
                if (keep is None or word in keep) and word not in FUNCTION_WORDS and word.isalpha():
                    self._by_ending.setdefault((sign, _ending(word)), []).append(word)

    def __call__(self, word: str) -> Sequence[str]:
        """Replacements for a word; empty where it is none of the lists' or nothing fits."""
        sign = 0 if word.lower() in FUNCTION_WORDS else self.words.sign(word)
        return self._by_ending.get((-sign, _ending(word.lower())), ()) if sign else ()


def edit_pair(
    prompt: str, response: str, opposite: OppositeWords, rng: random.Random, share: float = 1.0
) -> EditedPair | None:
    """Replace sentiment words of one sign in a response.

    Words of the more frequent sign are replaced, so that the two texts differ in sentiment as far as they can.

    Args:
        prompt: left as it is.
        response: the text.
        opposite: gives the replacements.
        rng: draws which words and by what.
        share: of the words that can be replaced, at least one.

    Returns:
        The pair, or None where nothing can be replaced.

    Raises:
        ValueError: ``share`` outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} must lie in (0, 1].")
    by_sign: dict[int, list[tuple[str, Span]]] = {1: [], -1: []}
    for word, span in words_of(response):
        if opposite(word):
            by_sign[opposite.words.sign(word)].append((word, span))
    sign = 1 if len(by_sign[1]) >= len(by_sign[-1]) else -1
    found = by_sign[sign]
    if not found:
        return None
    picked = sorted(rng.sample(found, max(1, round(share * len(found)))), key=lambda item: item[1])
    edited, end, new_spans = "", 0, []
    for word, (start, stop) in picked:
        replacement = _cased(rng.choice(list(opposite(word))), response[start:stop])
        edited += response[end:start]
        new_spans.append((len(edited), len(edited) + len(replacement)))
        edited, end = edited + replacement, stop
    edited += response[end:]
    old_spans = tuple(span for _, span in picked)
    if sign > 0:
        return EditedPair(prompt, response, edited, old_spans, tuple(new_spans))
    return EditedPair(prompt, edited, response, tuple(new_spans), old_spans)


def edit_pairs(
    texts: Iterable[tuple[str, str]], opposite: OppositeWords, seed: int = 0, share: float = 1.0
) -> list[EditedPair]:
    """Edited pairs of (prompt, response) texts, in order; texts in which nothing can be replaced give none."""
    pairs = (
        edit_pair(prompt, response, opposite, random.Random(f"{seed}/{number}"), share)
        for number, (prompt, response) in enumerate(texts)
    )
    return [pair for pair in pairs if pair is not None]


def edited_marks(tokenizer: Any, pairs: Mapping[int, EditedPair]) -> Description:
    """Describes the target tokens of collated batches: ``edited`` marks the first token of each replaced word.

    Args:
        tokenizer: one that gives texts back unchanged.
        pairs: by ``row_id`` of the batch's rows.
    """

    def describe(batch: Batch) -> dict[str, Tensor]:
        ids = batch["input_ids"].cpu()
        identities = batch["row_id"].tolist() * 2
        marks, places = [], []
        for row, identity in enumerate(identities):
            indices = real_tokens(batch, row)
            _, spans = token_spans(tokenizer, ids[row, indices].tolist())
            pair = pairs[identity]
            own = pair.chosen_spans if row < len(identities) // 2 else pair.rejected_spans
            offset = spans[indices.index(response_start(batch, row))][0]
            marks.append(first_tokens(spans, [(start + offset, end + offset) for start, end in own]))
            places.append(indices)
        return {"edited": as_targets(marks, places, ids.shape)}

    return describe


def _ending(word: str) -> str:
    return next(ending for ending in ENDINGS if word.endswith(ending))


def _cased(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word
