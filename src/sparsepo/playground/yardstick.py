"""Do the masks find the tokens that decide the preference? In the sentiment world the answer is known.

Token scores of held-out pairs are collected into flat arrays, one entry a response token, and ranked against the known
preference words by AUC, chosen and rejected responses apart, beside controls that need no mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsepo.evaluation.controls import entropy, reference_log_probs
from sparsepo.evaluation.token_table import (
    SIDES,
    Batch,
    Description,
    Marks,
    ScoredBatch,
    TokenTable,
    targets_of,
    token_columns,
)

from .world import World

__all__ = ["SCORES", "SIDES", "PreferenceTable", "token_table"]
# What is ranked, and how it is called in tables
SCORES = {
    "reward_mask": "reward mask",
    "kl_mask": "KL mask",
    "entropy": "control: reference entropy",
    "uniform": "control: uniform 0.5",
    "log_ratio": "policy's |log-ratio| ¹",
    "ceiling": "ceiling ²",
}


class PreferenceTable(TokenTable):
    """A token table of the sentiment world: the positive tokens are the preference words.

    Its groups are ``open_class``, the content words (ranking within them is the harder task: function words are easy to
    tell apart), and ``held_out``, the words of :attr:`World.held_out_words`, and ``seen``, the other preference words.
    """

    @property
    def preference(self) -> Marks:
        """Whether a token is a preference word, (n,)."""
        return self.positive

    @property
    def open_class(self) -> Marks:
        """Whether it is a content word, (n,)."""
        return self.groups["open_class"]

    @property
    def held_out(self) -> Marks:
        """Whether it is a preference word of :attr:`World.held_out_words`, (n,)."""
        return self.groups["held_out"]


def token_table(
    world: World, tokenizer: Any, reference: Any, batches: Iterable[ScoredBatch], *more: Description
) -> PreferenceTable:
    """Collect the response tokens of scored batches.

    Args:
        world: knows the preference words.
        tokenizer: maps ids to words.
        reference: the reference model, for entropy and ceiling.
        batches: collated batches (``input_ids`` and ``attention_mask``, (2P, T + 1), chosen rows first) and their
            scores.
        more: further scores of each target token.
    """
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    marks = {
        "preference": torch.tensor([word in world.preference_words for word in words]),
        "open_class": torch.tensor([word in world.open_class_words for word in words]),
        "held_out": torch.tensor([word in world.held_out_words for word in words]),
    }

    def describe(batch: Batch) -> dict[str, Tensor]:
        targets = targets_of(batch)
        logps = reference_log_probs(reference, batch)
        return {name: of_word[targets] for name, of_word in marks.items()} | {
            "entropy": entropy(logps),
            "uniform": torch.full(logps.shape[:-1], 0.5),
            # exact for responses that the reference itself sampled
            "ceiling": logps.exp()[..., marks["preference"]].sum(-1),
        }

    flat = token_columns(batches, describe, *more)
    preference, held_out = flat.pop("preference"), flat.pop("held_out")
    groups = {
        "open_class": flat.pop("open_class"),
        "held_out": held_out,
        "seen": np.logical_and(preference, ~held_out),
    }
    chosen = flat.pop("chosen")
    ordered = [name for name in SCORES if name in flat] + [name for name in flat if name not in SCORES]
    return PreferenceTable(chosen, preference, {name: flat[name] for name in ordered}, groups)
