"""What a mask that has not seen its token can know: the true probability of a preference word given the prefix.

A mask read at the predicting position can at best order tokens by this probability, so its AUC is the ceiling of every
such mask. The world is a hidden Markov chain (mood, template, place in the template), so the probability is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .world import MOODS, TEMPLATES, World


class PrefixOracle:
    """P(next word is a preference word | words so far), by the forward recursion over the world's templates.

    Words that cannot follow (a sampled text may be ungrammatical) reset the belief to every place of every template.
    """

    def __init__(self, world: World) -> None:
        self._index = {word: i for i, word in enumerate(world.vocabulary)}
        preference = np.array([word in world.preference_words for word in world.vocabulary])
        emissions: list[NDArray[np.float64]] = []
        starts: list[float] = []
        self._next: list[int] = []  # state after each state; -1: a new sentence
        total = sum(weight for weight, _ in TEMPLATES)
        for mood in MOODS:
            for (weight, _), slots in zip(TEMPLATES, world.slots, strict=True):
                for place, slot in enumerate(slots):
                    row = np.zeros(len(self._index))
                    for word, probability in slot.distribution(mood).items():
                        row[self._index[word]] = probability
                    last = place == len(slots) - 1
                    self._next.append(-1 if last else len(emissions) + 1)
                    starts.append(weight / total / len(MOODS) if place == 0 else 0.0)
                    emissions.append(row)
        self._emissions = np.stack(emissions)  # (S, V)
        self._start = np.array(starts)  # (S,)
        self._preference = self._emissions[:, preference].sum(1)  # (S,)

    def probabilities(self, words: Sequence[str]) -> NDArray[np.float64]:
        """The probability before each word of a response was drawn, (len(words),).

        The review's end and its prompt tell nothing about preference words, so neither is needed.
        """
        belief = self._start.copy()
        result = np.zeros(len(words))
        for i, word in enumerate(words):
            result[i] = belief @ self._preference
            belief = self._step(belief, word)
        return result

    def _step(self, belief: NDArray[np.float64], word: str) -> NDArray[np.float64]:
        column = self._index.get(word)
        seen = np.zeros_like(belief) if column is None else belief * self._emissions[:, column]
        if seen.sum() == 0:
            return np.full_like(belief, 1 / len(belief))
        seen /= seen.sum()
        following = np.zeros_like(belief)
        half = len(belief) // len(MOODS)
        for state in np.flatnonzero(seen):
            if self._next[state] >= 0:
                following[self._next[state]] += seen[state]
            else:  # a new sentence, in the same mood
                mood = slice(0, half) if state < half else slice(half, None)
                following[mood] += seen[state] * self._start[mood] * len(MOODS)
        return following
