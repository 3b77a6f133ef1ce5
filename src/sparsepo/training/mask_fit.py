"""Fitting the heads to what the policy has changed: where training moves a token most, the mask should be large.

The preference loss alone tells a head little about single tokens: it moves the masks of a whole response up or down, and
what is left for a token is noise. The policy's own log-ratio does say which tokens training moves. So the head's number x
(before offset, scale and gate) is fitted, beside the preference loss, to the size of the log-ratio relative to its running
mean over tokens:

    weight · Σ_pairs mean_t (x_t − min(|r_t| / E|r|, 4))²        r_t = log π(y_t) − log π_ref(y_t), without gradient

A KL head is fitted to the token's KL in the place of |r|. The term is the library's own, not the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsepo.masks import LearnedMask
from sparsepo.masks.base import TokenMasks
from sparsepo.scoring import ScorerOutput

CLIP = 4.0  # of the target, in running means: single tokens that move far do not rule the fit
MEMORY = 0.9  # of the running mean, a step


@dataclass
class LogRatioFit:
    """The term of one run.

    Args:
        weight: of the term, > 0.
        masker: the mask whose heads are fitted; their ``signal_size`` holds the running means.
    """

    weight: float
    masker: LearnedMask
    # of this process and step, by head: Σ weight · size and Σ weight over tokens
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, scored: ScorerOutput, masks: TokenMasks, pair_weight: Tensor, token_weight: Tensor | None
    ) -> Tensor | None:
        """Add the term to ``scored.loss``, and its batch to the running means.

        Args:
            scored: scores of P pairs.
            masks: of the 2P responses, with ``values``.
            pair_weight: weight of each pair in the loss, (P,).
            token_weight: of scored tokens, 0 elsewhere, (2P, T), 1 in expectation; None: every token was scored.

        Returns:
            mean squared error of the heads, weighted as the loss; None before there is a running mean.
        """
        if masks.values is None:
            raise ValueError("The masks hold no values to fit; set shows_values on the masker.")
        sides = (scored.scores.chosen, scored.scores.rejected)
        response = torch.cat([side.response_mask for side in sides])
        weight = response.float() if token_weight is None else token_weight.float() * response
        count = response.view(2, -1, response.shape[-1]).sum((0, 2)).clamp(min=1)  # (P,)
        of_token = weight * (pair_weight / count).repeat(2)[:, None]
        errors = []
        for name, head in zip(self.masker.heads, self.masker.mask_heads(), strict=True):
            size = signal_of(name, sides)
            if size is None:
                continue
            size = torch.where(weight > 0, size, torch.zeros_like(size))
            self._count(name, size, weight * (pair_weight > 0).repeat(2)[:, None])
            known = head.signal_size > 0  # before the first step the policy is the reference: nothing to fit
            target = (size / head.signal_size.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=CLIP)
            value = masks.values[name]
            error = (of_token.to(value.dtype) * (value - target.to(value.dtype)) ** 2).sum()
            errors.append(torch.where(known, error, torch.zeros_like(error)))
        if not errors:
            return None
        total = torch.stack(errors).mean()
        scored.loss = scored.loss + self.weight * torch.stack(errors).sum()
        return total.detach()

    def _count(self, name: str, size: Tensor, weight: Tensor) -> None:
        new = torch.stack([(weight * size).sum(), weight.sum()]).detach().float()
        self._sums[name] = self._sums[name] + new if name in self._sums else new

    def forget(self) -> None:
        """Drop what an interrupted step has left."""
        self._sums = {}

    @torch.no_grad()
    def follow(self, accelerator: Any) -> None:
        """After an optimiser step: move the running means. A collective call."""
        for name, head in zip(self.masker.heads, self.masker.mask_heads(), strict=True):
            own = self._sums.get(name, torch.zeros(2)).to(accelerator.device)
            total, count = accelerator.reduce(own, reduction="sum").tolist()
            if not count and not self._sums:  # the step was left out
                continue
            mean, old = total / count if count else 0.0, float(head.signal_size)
            head.signal_size.fill_(MEMORY * old + (1 - MEMORY) * mean if old > 0 else mean)
        self._sums = {}


def signal_of(head: str, sides: tuple[Any, Any]) -> Tensor | None:
    """What a head is fitted to, ≥ 0, (2P, T): |log-ratio|, or the KL for a KL head; None where it was not computed."""
    if head == "kl":
        found = [side.kl for side in sides]
        return None if any(part is None for part in found) else torch.cat(found).detach().clamp(min=0)
    return torch.cat([side.log_ratios().detach().abs() for side in sides])
