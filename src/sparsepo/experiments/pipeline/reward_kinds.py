"""Kinds of rewards of an experiment's samples. Imports nothing, so that recipes are checked at once."""

from __future__ import annotations

# kind → what it is, for tables and axes
REWARD_KINDS = {
    "trained": "small local reward model",
    "lexicon": "σ(positive − negative words) by the word lists",
    "classifier": "probability of a class by a classifier",
    "regression": "reward model",
    "playground": "known words of the world",
    "rouge": "ROUGE-L (F1, 0 to 100) against the best-scored response",
    "tests": "share of programs that pass their tests",
}
REWARD_SOURCES = ("labelled", "scored", "pairs")  # what a "trained" one is trained on
