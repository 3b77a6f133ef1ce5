"""The sentiment world: short review-like texts in which known words decide the preference.

A review is a prompt, ``review of <title> : <neutral sentence>``, and a response of three to five sentences. Each sentence
comes from a template whose slots are filled from word classes; some slots hold a preference word (one of 15 positive and
15 negative words) with a known probability and a neutral word of a large class otherwise. A hidden mood of the review
makes its preference words agree most of the time. The reward of a text is σ(#positive − #negative words), so that the
tokens that a preference mask should find are known exactly, and so is the probability of each given its prefix.

All words are separated by single spaces, punctuation included.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .vocabulary import HELD_OUT, NEGATIVE, NEUTRAL, OPEN_CLASSES, POSITIVE

# (weight, template); a slot is {class} (neutral words only) or {class:p} (a preference word with probability p)
TEMPLATES: tuple[tuple[float, str], ...] = (
    (2, "the {aspect} was {adjective:.6} ."),
    (2, "the {aspect} was {degree} {adjective:.85} ."),
    (2, "i {verb:.5} the {aspect} ."),
    (2, "it was a {thing:.5} about a {aspect} ."),
    (2, "the {aspect} and the {aspect} were {adjective:.55} ."),
    (2, "a {adjective:.45} {aspect} with a {adjective} {aspect} ."),
    (2, "we {verb:.4} the {adjective} {aspect} by the {aspect} ."),
    (2, "the {adjective:.4} {aspect} was {adjective:.6} ."),
    (1, "there was a {adjective} {aspect} in the {aspect} ."),
    (1, "one {aspect} {verb} the {adjective} {aspect} ."),
    (1, "on {day} i {verb} it at the {aspect} ."),
    (1, "in the {aspect} the {aspect} was {adjective} ."),
    (1, "this {thing} was from {title} {title} ."),
)
NEUTRAL_TEMPLATES = tuple(template for _, template in TEMPLATES if ":" not in template)
PROMPT_WORDS = ("review", "of", ":")
MIN_SENTENCES, MAX_SENTENCES = 3, 5
MOOD_AGREEMENT = 0.75
MOODS = ("positive", "negative")


@dataclass(frozen=True)
class Slot:
    """One place of a template: a fixed word, or a class with the probability of a preference word."""

    word: str | None
    word_class: str | None = None
    preference: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Slot:
        """``word``, ``{class}`` or ``{class:p}``."""
        if not text.startswith("{"):
            return cls(text)
        name, _, probability = text.strip("{}").partition(":")
        return cls(None, name, float(probability or 0))

    def distribution(self, mood: str) -> dict[str, float]:
        """Probability of each word of this slot in a review of this mood."""
        if self.word is not None:
            return {self.word: 1.0}
        assert self.word_class is not None
        neutral = NEUTRAL[self.word_class]
        words = dict.fromkeys(neutral, (1 - self.preference) / len(neutral))
        if self.preference:
            positive = MOOD_AGREEMENT if mood == "positive" else 1 - MOOD_AGREEMENT
            for share, group in ((positive, POSITIVE), (1 - positive, NEGATIVE)):
                chosen = group[self.word_class]
                words.update(dict.fromkeys(chosen, self.preference * share / len(chosen)))
        return words


@dataclass(frozen=True)
class Review:
    """A text of the world. ``response`` starts with the space that separates it from ``prompt``."""

    prompt: str
    response: str

    @property
    def text(self) -> str:
        """Prompt and response."""
        return self.prompt + self.response


class World:
    """The sentiment world. It has no state: every draw is a function of its arguments."""

    @cached_property
    def positive_words(self) -> frozenset[str]:
        """The 15 words that raise the reward."""
        return frozenset(word for words in POSITIVE.values() for word in words)

    @cached_property
    def negative_words(self) -> frozenset[str]:
        """The 15 words that lower it."""
        return frozenset(word for words in NEGATIVE.values() for word in words)

    @cached_property
    def preference_words(self) -> frozenset[str]:
        """Positive and negative words: the tokens that a reward mask should find."""
        return self.positive_words | self.negative_words

    @property
    def held_out_words(self) -> frozenset[str]:
        """Preference words to keep out of the training pairs when generalisation to unseen words is measured."""
        return HELD_OUT

    @cached_property
    def open_class_words(self) -> frozenset[str]:
        """Content words, preference words included; the rest are function words, degrees, days and punctuation."""
        return self.preference_words | {word for name in OPEN_CLASSES for word in NEUTRAL[name]}

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of the world, sorted."""
        words = set(self.open_class_words) | set(PROMPT_WORDS)
        words |= {word for group in NEUTRAL.values() for word in group}
        words |= {slot.word for slots in self.slots for slot in slots if slot.word is not None}
        return tuple(sorted(words))

    @cached_property
    def slots(self) -> tuple[tuple[Slot, ...], ...]:
        """The templates, parsed, in the order of ``TEMPLATES``."""
        return tuple(_parse(template) for _, template in TEMPLATES)

    def reviews(self, count: int, seed: int, stream: str = "texts") -> list[Review]:
        """Draw ``count`` reviews. The same (seed, stream) always gives the same ones, and a longer draw starts with a
        shorter one; different streams are independent."""
        rng = random.Random(f"{seed}/{stream}")
        return [self._review(rng) for _ in range(count)]

    def prompts(self, count: int, seed: int, stream: str = "prompts") -> list[str]:
        """Draw ``count`` prompts, as :meth:`reviews` does. No prompt occurs twice within one draw."""
        rng = random.Random(f"{seed}/{stream}")
        prompts: dict[str, None] = {}
        while len(prompts) < count:
            prompts[_prompt(rng)] = None
        return list(prompts)

    def counts(self, text: str) -> tuple[int, int]:
        """Number of positive and of negative words in ``text``."""
        words = text.split()
        return sum(w in self.positive_words for w in words), sum(w in self.negative_words for w in words)

    def reward(self, text: str) -> float:
        """σ(#positive − #negative words) of a response, in (0, 1)."""
        positive, negative = self.counts(text)
        return 1 / (1 + math.exp(negative - positive))

    def preference_marks(self, words: Sequence[str]) -> list[bool]:
        """True at each preference-bearing word."""
        return [word in self.preference_words for word in words]

    def open_class_marks(self, words: Sequence[str]) -> list[bool]:
        """True at each content word."""
        return [word in self.open_class_words for word in words]

    def _review(self, rng: random.Random) -> Review:
        prompt = _prompt(rng)
        mood = rng.choice(MOODS)
        weights = [weight for weight, _ in TEMPLATES]
        sentences = rng.choices(self.slots, weights, k=rng.randint(MIN_SENTENCES, MAX_SENTENCES))
        return Review(prompt, " " + " ".join(_fill(slots, mood, rng) for slots in sentences))


def _parse(template: str) -> tuple[Slot, ...]:
    return tuple(Slot.parse(word) for word in template.split())


def _fill(slots: Sequence[Slot], mood: str, rng: random.Random) -> str:
    words = []
    for slot in slots:
        options = slot.distribution(mood)
        words.append(rng.choices(list(options), list(options.values()))[0])
    return " ".join(words)


def _prompt(rng: random.Random) -> str:
    title = " ".join(rng.sample(NEUTRAL["title"], 2))
    sentence = _fill(_parse(rng.choice(NEUTRAL_TEMPLATES)), "positive", rng)
    return f"review of {title} : {sentence}"
