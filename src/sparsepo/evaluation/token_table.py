"""Token scores of judged pairs in flat arrays, ranked against labels: did the mask find the tokens?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsepo.objectives.scores import PairScores, TokenScores

from .ranking import average_precision, roc_auc

Array = NDArray[np.float64]
Marks = NDArray[np.bool_]
Batch = dict[str, Tensor]
ScoredBatch = tuple[Batch, PairScores]
# Of a collated batch of 2P sequences: named values of each target token, (2P, T)
Description = Callable[[Batch], Mapping[str, Tensor]]
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class TokenTable:
    """One entry a response token, (n,) each.

    Args:
        chosen: whether the token belongs to a chosen response.
        positive: whether it is one of the tokens to be found.
        scores: by name; larger should mean positive.
        groups: further marks by name: which tokens belong to a group.
    """

    chosen: Marks
    positive: Marks
    scores: dict[str, Array]
    groups: dict[str, Marks] = field(default_factory=dict)

    def ranking(
        self, score: str, side: str | None = None, within: str | None = None, positives: str | None = None
    ) -> dict[str, float]:
        """``auc`` and ``average_precision`` of a score for the positive tokens.

        Args:
            score: a name of :attr:`scores`.
            side: ``chosen``, ``rejected``, or None for both.
            within: group of tokens that are ranked; None: all.
            positives: group of positives that are ranked, the others being left out; None: all.

        Raises:
            ValueError: an unknown name, or the selected tokens hold no positive, or nothing else.
        """
        if score not in self.scores:
            raise ValueError(f"score={score!r} is not in the table; choose one of {', '.join(self.scores)}.")
        keep = self._side(side)
        if within is not None:
            keep = keep & self._group(within)
        if positives is not None:
            keep = keep & (self._group(positives) | ~self.positive)
        values, labels = self.scores[score][keep], self.positive[keep]
        return {"auc": roc_auc(values, labels), "average_precision": average_precision(values, labels)}

    def mask_summary(self, score: str) -> dict[str, float]:
        """Mean, largest value, share of exact zeros, and the mean over positive tokens and over the others."""
        values = self.scores[score]
        return {
            "mean": float(values.mean()),
            "max": float(values.max()),
            "sparsity": float((values == 0).mean()),
            "mean_positive": float(values[self.positive].mean()),
            "mean_other": float(values[~self.positive].mean()),
        }

    def _side(self, side: str | None) -> Marks:
        if side is None:
            return np.ones_like(self.chosen)
        if side not in SIDES:
            raise ValueError(f"side={side!r} is unknown; choose one of {', '.join(SIDES)}, or None for both.")
        return self.chosen == (side == "chosen")

    def _group(self, name: str) -> Marks:
        if name not in self.groups:
            raise ValueError(f"The table has no group {name!r}; choose one of {', '.join(self.groups) or '(none)'}.")
        return self.groups[name]


def token_columns(batches: Iterable[ScoredBatch], *descriptions: Description) -> dict[str, NDArray[Any]]:
    """Flat arrays, (n,) each, over the response tokens of scored batches.

    Args:
        batches: collated batches (``input_ids``, ``attention_mask``, (2P, T + 1), chosen rows first) and their scores.
        descriptions: what else is to be said about each target token.

    Returns:
        ``chosen``; ``reward_mask`` and ``kl_mask`` where the objective reads masks; ``log_ratio``, its absolute value,
        where there is a reference; and what the descriptions give.

    Raises:
        ValueError: there are no batches.
    """
    columns: dict[str, list[NDArray[Any]]] = {}
    for batch, scores in batches:
        pairs = len(batch["input_ids"]) // 2
        said = {name: values for description in descriptions for name, values in description(batch).items()}
        for side, rows in ((scores.chosen, slice(None, pairs)), (scores.rejected, slice(pairs, None))):
            keep = side.response_mask.cpu()
            entry = side_scores(side) | {name: values[rows] for name, values in said.items()}
            arrays = {name: _flat(values, keep) for name, values in entry.items()}
            arrays["chosen"] = np.full(int(keep.sum()), side is scores.chosen)
            for name, values in arrays.items():
                columns.setdefault(name, []).append(values)
    if not columns:
        raise ValueError("There are no scored batches; give at least one held-out pair.")
    return {name: np.concatenate(values) for name, values in columns.items()}


def side_scores(side: TokenScores) -> dict[str, Tensor]:
    """The masks of one side and its |log-ratio|, (P, T) each, as far as they are there."""
    scores = {"reward_mask": side.reward_mask, "kl_mask": side.kl_mask}
    if side.ref_logps is not None:
        scores["log_ratio"] = side.log_ratios().abs()
    return {name: values for name, values in scores.items() if values is not None}


def targets_of(batch: Batch) -> Tensor:
    """Ids of the target tokens, (2P, T)."""
    return batch["input_ids"][:, 1:].cpu()


def _flat(values: Tensor, keep: Tensor) -> NDArray[Any]:
    flat = values.cpu()[keep]
    return (flat if flat.dtype == torch.bool else flat.double()).numpy()
