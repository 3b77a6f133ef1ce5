"""Do the masks find the tokens that decide the preference? In the sentiment world the answer is known.

Token scores of held-out pairs are collected into flat arrays, one entry a response token, and ranked against the known
preference words by AUC, chosen and rejected responses apart, beside controls that need no mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsepo.evaluation.generation import evaluating
from sparsepo.evaluation.ranking import average_precision, roc_auc
from sparsepo.objectives.scores import PairScores, TokenScores

from .world import World

Array = NDArray[np.float64]
SIDES = ("chosen", "rejected")
# What is ranked, and how it is called in tables
SCORES = {
    "reward_mask": "reward mask",
    "kl_mask": "KL mask",
    "entropy": "control: reference entropy",
    "uniform": "control: uniform 0.5",
    "log_ratio": "policy's |log-ratio| ¹",
    "ceiling": "ceiling ²",
}


@dataclass(frozen=True)
class TokenTable:
    """One entry a response token, (n,) each.

    Args:
        chosen: whether the token belongs to a chosen response.
        preference: whether it is a preference word.
        open_class: whether it is a content word.
        held_out: whether it is a preference word of :attr:`World.held_out_words`.
        scores: by name of ``SCORES``; masks that the objective does not read are absent.
    """

    chosen: NDArray[np.bool_]
    preference: NDArray[np.bool_]
    open_class: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    scores: dict[str, Array]

    def ranking(self, score: str, side: str | None = None, open_class: bool = False) -> dict[str, float]:
        """``auc`` and ``average_precision`` of a score for preference words.

        Args:
            score: a name of :attr:`scores`.
            side: ``chosen``, ``rejected``, or None for both.
            open_class: rank content words only, a harder task: function words are easy to tell apart.

        Raises:
            ValueError: the selected tokens hold no preference word, or nothing else.
        """
        keep = np.ones_like(self.chosen) if side is None else self.chosen == (side == "chosen")
        if open_class:
            keep = keep & self.open_class
        values, labels = self.scores[score][keep], self.preference[keep]
        return {"auc": roc_auc(values, labels), "average_precision": average_precision(values, labels)}

    def mask_summary(self, score: str) -> dict[str, float]:
        """Mean, largest value, share of exact zeros, and the mean over preference words and over the other tokens."""
        values = self.scores[score]
        return {
            "mean": float(values.mean()),
            "max": float(values.max()),
            "sparsity": float((values == 0).mean()),
            "mean_preference": float(values[self.preference].mean()),
            "mean_other": float(values[~self.preference].mean()),
        }


def token_table(
    world: World, tokenizer: Any, reference: Any, batches: Iterable[tuple[dict[str, Tensor], PairScores]]
) -> TokenTable:
    """Collect the response tokens of scored batches.

    Args:
        world: knows the preference words.
        tokenizer: maps ids to words.
        reference: the reference model, for entropy and ceiling.
        batches: collated batches (``input_ids`` and ``attention_mask``, (2P, T + 1), chosen rows first) and their
            scores.
    """
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    marks = {
        "preference": np.array([word in world.preference_words for word in words]),
        "open_class": np.array([word in world.open_class_words for word in words]),
        "held_out": np.array([word in world.held_out_words for word in words]),
    }
    preference = torch.from_numpy(marks["preference"])
    columns: dict[str, list[NDArray[Any]]] = {}
    for batch, scores in batches:
        pairs = len(batch["input_ids"]) // 2
        targets = batch["input_ids"][:, 1:].cpu()
        controls = _controls(reference, batch, preference)
        for side, rows in ((scores.chosen, slice(None, pairs)), (scores.rejected, slice(pairs, None))):
            keep = side.response_mask.cpu()
            ids = targets[rows][keep].numpy()
            entry = {name: of_word[ids] for name, of_word in marks.items()}
            entry["chosen"] = np.full(len(ids), side is scores.chosen)
            arrays = _side_scores(side) | {name: values[rows] for name, values in controls.items()}
            entry |= {name: values.cpu()[keep].double().numpy() for name, values in arrays.items()}
            for name, values in entry.items():
                columns.setdefault(name, []).append(values)
    if not columns:
        raise ValueError("There are no scored batches; give at least one held-out pair.")
    flat = {name: np.concatenate(values) for name, values in columns.items()}
    return TokenTable(
        chosen=flat["chosen"],
        preference=flat["preference"],
        open_class=flat["open_class"],
        held_out=flat["held_out"],
        scores={name: flat[name] for name in SCORES if name in flat},
    )


def _side_scores(side: TokenScores) -> dict[str, Tensor]:
    scores = {"reward_mask": side.reward_mask, "kl_mask": side.kl_mask}
    if side.ref_logps is not None:
        scores["log_ratio"] = side.log_ratios().abs()
    return {name: values for name, values in scores.items() if values is not None}


def _controls(reference: Any, batch: dict[str, Tensor], preference: Tensor) -> dict[str, Tensor]:
    """What the reference alone says about each target token, (2P, T)."""
    with evaluating(reference):
        logits = reference(
            input_ids=batch["input_ids"].to(reference.device),
            attention_mask=batch["attention_mask"].to(reference.device),
        ).logits[:, :-1]
    logps = logits.float().log_softmax(-1).cpu()
    probabilities = logps.exp()
    return {
        "entropy": -(probabilities * logps).sum(-1),
        "uniform": torch.full(logps.shape[:-1], 0.5),
        # exact for responses that the reference itself sampled
        "ceiling": probabilities[..., preference].sum(-1),
    }
