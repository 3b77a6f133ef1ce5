"""Which pair, which token and which term of a step is not a finite number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparsepo.objectives import PairScores

from .collator import ROW_ID
from .step import StepOutput

SHOWN = 8  # findings of one pair and term that are listed
# in the order in which a step computes them: the first one that fails is the cause
TERMS = {
    "reward_mask": "reward mask",
    "kl_mask": "KL mask",
    "ref_logps": "reference's log-probability",
    "policy_logps": "policy's log-probability",
    "kl": "KL",
}


@dataclass(frozen=True)
class Finding:
    """One number that is not finite.

    Args:
        term: what it is: a mask, a log-probability, the KL, a pair's loss, a gradient.
        value: ``nan``, ``inf`` or ``-inf``.
        row: number of the row in the data set, if the batch says so.
        pair: number of the pair in its batch.
        side: ``chosen`` or ``rejected``; None for what belongs to a pair or a batch.
        position: place of the token in its sequence without padding, from 0.
        token_id: the token.
        text: what the tokenizer makes of it.
        parameter: name of the weight whose gradient it is.
    """

    term: str
    value: str
    row: int | None = None
    pair: int | None = None
    side: str | None = None
    position: int | None = None
    token_id: int | None = None
    text: str | None = None
    parameter: str | None = None

    def __str__(self) -> str:
        parts = []
        if self.pair is not None:
            parts.append(f"row {self.row}" if self.row is not None else f"pair {self.pair} of the batch")
        if self.side is not None:
            parts.append(f"{self.side}, token {self.position} ({self.text!r}, id {self.token_id})")
        term = self.term if self.parameter is None else f"{self.term} of {self.parameter}"
        return f"{', '.join(parts)}{': ' if parts else ''}the {term} is {self.value}"

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def findings_of(step: StepOutput, batch: dict[str, Any], decode: Callable[[int], str]) -> list[Finding]:
    """What is not finite among the numbers of a batch's forward; of each pair the first term that fails.

    Args:
        step: result of the forward, every response token scored.
        batch: the collated batch.
        decode: text of a token id.
    """
    found: list[Finding] = []
    loss = step.scored.pair_loss.loss.detach()
    for pair in range(len(loss)):
        own = list(_of_tokens(step.scored.scores, batch, pair, decode))
        if not own and not math.isfinite(float(loss[pair])):
            own = [Finding("loss", _name(loss[pair]), _row(batch, pair), pair)]
        found += own
    if step.aux_loss is not None and not bool(torch.isfinite(step.aux_loss).all()):
        found.append(Finding("auxiliary loss of the experts", _name(step.aux_loss.detach().sum())))
    if not found and not bool(torch.isfinite(step.scored.loss).all()):
        found.append(Finding("loss of the batch", _name(step.scored.loss.detach())))
    return found


def gradient_findings(
    gradients: Iterator[tuple[str, Tensor]], row: int | None = None, pair: int | None = None
) -> list[Finding]:
    """The gradients that are not finite, by the names of their weights."""
    found = []
    for name, gradient in gradients:
        bad = ~torch.isfinite(gradient)
        if bool(bad.any()):
            found.append(Finding("gradient", _name(gradient[bad].flatten()[0]), row, pair, parameter=name))
    return found


def pairs_of(batch: dict[str, Any], pair: int) -> dict[str, Any]:
    """One pair of a collated batch, as a batch."""
    pairs = len(batch["input_ids"]) // 2
    alone: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            alone[name] = value
        elif len(value) == 2 * pairs:
            alone[name] = value[[pair, pairs + pair]]
        else:
            alone[name] = value[pair : pair + 1]
    return alone


def _of_tokens(scores: PairScores, batch: dict[str, Any], pair: int, decode: Callable[[int], str]) -> Iterator[Finding]:
    pairs = len(batch["input_ids"]) // 2
    for term, name in TERMS.items():
        count = 0
        for index, (side, own) in enumerate((("chosen", scores.chosen), ("rejected", scores.rejected))):
            values = getattr(own, term)
            if values is None:
                continue
            bad = (~torch.isfinite(values[pair]) & own.response_mask[pair]).nonzero().flatten().tolist()
            sequence = index * pairs + pair
            before = batch["attention_mask"][sequence].cumsum(0)
            for column in bad[:SHOWN]:
                token = int(batch["input_ids"][sequence, column + 1])
                place = int(before[column + 1]) - 1
                value = _name(values[pair, column].detach())
                yield Finding(name, value, _row(batch, pair), pair, side, place, token, decode(token))
            count += len(bad)
        if count:
            return  # what follows from it is no news


def _row(batch: dict[str, Any], pair: int) -> int | None:
    return int(batch[ROW_ID][pair]) if ROW_ID in batch else None


def _name(value: Tensor) -> str:
    return str(float(value))
