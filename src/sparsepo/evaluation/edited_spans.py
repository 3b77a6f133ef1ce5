"""Pairs whose deciding tokens are known on real text: a text against itself with known words replaced.

Sentiment words of a text are replaced by words of the opposite sign and the same part of speech. The more positive of
the two texts is chosen, so the preference follows from the replaced spans and from nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .text_spans import (
    Span,
    as_targets,
    first_tokens,
    real_tokens,
    response_start,
    token_spans,
    words_of,
)
from .token_table import Batch, Description

# How many words before a word may hold a negation that turns its sign ("not at all good")
NEGATION_REACH = 3
NEGATIONS = frozenset(
    ("not", "no", "never", "nothing", "nobody", "none", "neither", "nor", "hardly", "barely", "without", "cannot")
)


def _group(positive: str, negative: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(positive.split()), tuple(negative.split())


# Words that can stand for each other in a sentence, by part of speech: positive, negative. Words that are mostly used
# in another sense ("like", "pretty", "kind", "well") are left out.
SENTIMENT_GROUPS = (
    _group(
        "good great excellent amazing wonderful brilliant fantastic beautiful funny interesting enjoyable nice perfect "
        "superb entertaining memorable clever charming delightful fascinating gripping hilarious impressive touching",
        "bad terrible awful horrible boring dull poor weak stupid lame ridiculous disappointing annoying predictable "
        "forgettable pathetic dreadful tedious silly unfunny bland clumsy pointless painful",
    ),
    _group("best greatest finest funniest", "worst weakest dullest poorest"),
    _group("better funnier", "worse duller"),
    _group("loved enjoyed liked adored admired", "hated disliked despised regretted"),
    _group("love enjoy adore admire", "hate dislike despise regret"),
    _group("loves enjoys adores admires", "hates dislikes despises regrets"),
    _group("beautifully brilliantly wonderfully perfectly superbly", "badly poorly terribly horribly awfully"),
    _group("masterpiece gem triumph delight treat success", "mess disaster failure bore disappointment joke"),
)


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
    """For a sentiment word, the words of the other sign that can stand in its place.

    Args:
        groups: (positive words, negative words) of each part of speech, lower case; no word twice.

    Raises:
        ValueError: a word stands twice.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[str], Sequence[str]]] = SENTIMENT_GROUPS) -> None:
        self._found: dict[str, tuple[int, Sequence[str]]] = {}
        for positive, negative in groups:
            for sign, own, other in ((1, positive, negative), (-1, negative, positive)):
                for word in own:
                    if word in self._found:
                        raise ValueError(f"groups hold {word!r} twice; a word has one sign and one part of speech.")
                    self._found[word] = (sign, tuple(other))

    def __call__(self, word: str) -> Sequence[str]:
        """Replacements for a word; empty where it is in no group."""
        return self._found.get(word.lower(), (0, ()))[1]

    def sign(self, word: str) -> int:
        """1, −1, or 0 for a word in no group."""
        return self._found.get(word.lower(), (0, ()))[0]

    def in_text(self, text: str) -> list[tuple[str, Span]]:
        """The words of a text that can be replaced, with their places; not those that a negation may turn."""
        words = words_of(text)
        return [
            (word, span)
            for number, (word, span) in enumerate(words)
            if self(word)
            and not any(
                before in NEGATIONS or before.endswith("n't")
                for before, _ in words[max(0, number - NEGATION_REACH) : number]
            )
        ]


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
    for word, span in opposite.in_text(response):
        by_sign[opposite.sign(word)].append((word, span))
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


def _cased(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word
