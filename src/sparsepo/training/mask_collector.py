"""Adding up what the health monitor reads, on the device, over the batches between two logs."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsepo.masks.moments import SCALARS, TokenGroups
from sparsepo.objectives import PairScores, TokenScores

_ENOUGH = 1 << 16  # tokens kept before they are added up: small batches share the cost of many small operations


@dataclass
class _Batch:
    """A batch waiting to be added up; columns are target tokens."""

    masks: Tensor  # (masks, 2P, T)
    response: Tensor  # (2P, T)
    weight: Tensor  # (2P,)
    position: Tensor  # (2P, T)
    log_ratios: Tensor | None  # (2P, T)


class MaskCollector:
    """Sums of the monitored masks since the last log, and the largest |log-ratio|.

    Args:
        masks: ``reward`` and/or ``kl``.
        limit: upper limit of the masks' values, or None.
    """

    def __init__(self, masks: tuple[str, ...], limit: float | None) -> None:
        self.masks, self.limit = masks, limit
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._waiting: list[_Batch] = []
        self._sums: Tensor | None = None
        self.start: Tensor | None = None  # the sums of the first step, (masks, SIZE)
        self._log_ratio: Tensor | None = None

    def copy(self) -> MaskCollector:
        """What was added until now, for a step that may be left out."""
        other = copy.copy(self)  # its tensors are never changed in place
        other._waiting = list(self._waiting)
        return other

    def broken(self) -> float:
        """Weight of the response tokens whose mask is not finite; waits for the device."""
        own = self.copy()
        own._add_up()
        return 0.0 if own._sums is None else float(own._sums[:, SCALARS.index("non_finite")].sum())

    @torch.no_grad()
    def add(self, scores: PairScores, weight: Tensor, sequence_position: Tensor, is_first: bool) -> None:
        """Add a training batch of P pairs.

        Args:
            scores: with masks.
            weight: weight of each pair, (P,).
            sequence_position: index of each target token in its unpadded sequence, (2P, T).
            is_first: whether no optimiser step has been made yet.
        """
        sides = (scores.chosen, scores.rejected)
        ratios = None
        if scores.chosen.ref_logps is not None:
            ratios = torch.cat([side.log_ratios().detach() for side in sides])
        response = torch.cat([side.response_mask for side in sides])
        masks = torch.stack(list(masks_of(sides, self.masks).values()))
        self._waiting.append(_Batch(masks, response, weight.repeat(2), sequence_position, ratios))
        if is_first or sum(batch.response.numel() for batch in self._waiting) >= _ENOUGH:
            self._add_up()
        if is_first:
            self.start = self._sums

    @torch.no_grad()
    def _add_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        width = max(batch.response.shape[1] for batch in waiting)

        def joined(name: str, dim: int = 0) -> Tensor:
            parts = [getattr(batch, name) for batch in waiting]
            return torch.cat([pad(part, (0, width - part.shape[-1])) for part in parts], dim)

        response = joined("response")
        groups = TokenGroups(response, torch.cat([batch.weight for batch in waiting]), joined("position"))
        found = torch.stack([groups.sums_of(mask, self.limit) for mask in joined("masks", 1)])
        self._sums = found if self._sums is None else self._sums + found
        if waiting[0].log_ratios is not None:
            largest = torch.where(response, joined("log_ratios").abs(), 0).amax()
            self._log_ratio = largest if self._log_ratio is None else torch.maximum(self._log_ratio, largest)

    def sums(self) -> Tensor | None:
        """The sums of all that was added, (masks, SIZE); None if nothing was."""
        self._add_up()
        return self._sums

    def log_ratio(self) -> Tensor:
        """The largest |log-ratio| of a response token; 0 where there is no reference."""
        self._add_up()
        return torch.zeros(()) if self._log_ratio is None else self._log_ratio


def masks_of(sides: tuple[TokenScores, TokenScores], masks: tuple[str, ...]) -> dict[str, Tensor]:
    """Monitored masks of both sides, (2P, T) each."""
    found = {}
    for name in masks:
        parts = [side.reward_mask if name == "reward" else side.kl_mask for side in sides]
        found[name] = torch.cat(
            [
                torch.ones_like(side.policy_logps) if part is None else part.detach()
                for side, part in zip(sides, parts, strict=True)
            ]
        )
    return found
