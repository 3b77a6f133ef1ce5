"""Sums over response tokens from which a mask's health is read: they add up over batches and processes.

Besides mean, spread and zeros they hold the mask's sum by the token's position and by the response's length, from which
follows how much of the mask's variance those explain: a mask that they explain says nothing about the words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SCALARS = ("tokens", "responses", "sum", "squares", "zeros", "dead", "at_limit", "non_finite", "between")
GROUPINGS = {
    "start": "the token's position in the response",
    "end": "the token's distance from the end of the response",
    "sequence": "the token's position in the whole sequence",
    "relative": "the token's relative position in the response",
    "length": "the length of the response",
}
_EXACT = 16  # positions with a bin of their own; beyond, this many bins an octave
_PER_OCTAVE = 8
_LONGEST = 1 << 17  # tokens
BINS = _EXACT + 13 * _PER_OCTAVE  # up to _LONGEST
_RELATIVE_BINS = 32
SIZE = len(SCALARS) + 2 * len(GROUPINGS) * BINS  # entries of a vector of sums


def position_bins(values: Tensor) -> Tensor:
    """Bin of each non-negative number: whole numbers below 16 alone, then eight bins an octave; int64."""
    value = values.clamp(min=0)
    octaves = torch.log2(value.clamp(min=_EXACT).double() if value.device.type != "mps" else value.clamp(min=_EXACT))
    coarse = _EXACT + ((octaves - math.log2(_EXACT)) * _PER_OCTAVE).floor().long()
    return torch.where(value < _EXACT, value.long(), coarse).clamp(max=BINS - 1)


@lru_cache(maxsize=16)
def _bin_table(device: torch.device) -> Tensor:
    """Bins of 0 … 2^17."""
    return position_bins(torch.arange(_LONGEST + 1, device=device))


class TokenGroups:
    """The tokens of a batch by position and length, formed once for all masks.

    Args:
        response_mask: true at response tokens, bool, (B, T).
        weight: weight of each sequence, (B,): 0 for rows that only fill a batch.
        sequence_position: index of each token in its unpadded sequence, int64, (B, T).
    """

    def __init__(self, response_mask: Tensor, weight: Tensor, sequence_position: Tensor) -> None:
        self.response_mask, self.row_weight = response_mask, _wide(weight)
        self.weight = response_mask * self.row_weight[:, None]  # (B, T)
        self.lengths = response_mask.sum(-1)  # (B,)
        length = self.lengths[:, None]
        count = response_mask.cumsum(-1)
        from_start = (count - 1).clamp_(min=0)
        relative = (from_start * _RELATIVE_BINS).div_(length.clamp(min=1), rounding_mode="floor")
        table = _bin_table(response_mask.device)
        positions = torch.stack([from_start, length - count, sequence_position]).clamp_(max=_LONGEST)
        bins = torch.cat([table[positions], relative[None]])
        offset = BINS * torch.arange(len(bins), device=response_mask.device)
        self.index = bins.add_(offset[:, None, None]).flatten()  # (groupings by token · B · T,)
        self.length_index = table[self.lengths.clamp(max=_LONGEST)]
        self.counts = self._by_group(self.weight)

    def _by_group(self, values: Tensor) -> Tensor:
        """Σ of token values in each bin of each grouping, (groupings · BINS,)."""
        by_token = values.new_zeros((len(GROUPINGS) - 1) * BINS)
        by_token.index_add_(0, self.index, values.flatten().repeat(len(GROUPINGS) - 1))
        by_length = values.new_zeros(BINS).index_add_(0, self.length_index, values.sum(-1))
        return torch.cat([by_token, by_length])

    def sums_of(self, mask: Tensor, limit: float | None = None) -> Tensor:
        """The vector of sums of one mask.

        Args:
            mask: (B, T).
            limit: upper limit of the mask's values, where there is one.

        Returns:
            (SIZE,), float64 where the device has it: ``SCALARS``, then counts and sums by bin.
        """
        values = _wide(mask)
        finite = torch.isfinite(values)
        response = self.response_mask
        clean = values.where(finite & response, torch.zeros_like(values))
        weighted = clean * self.weight
        row_sums = clean.sum(-1)
        kept = (clean > 0).any(-1)
        some = self.lengths > 0
        at_limit = torch.zeros_like(clean) if limit is None else (clean >= limit - 1e-6) * self.weight
        scalars = (
            self.weight.sum(),
            (some * self.row_weight).sum(),
            weighted.sum(),
            (weighted * clean).sum(),
            ((clean == 0) & finite).mul(self.weight).sum(),
            ((some & ~kept) * self.row_weight).sum(),
            at_limit.sum(),
            ((~finite & response) * self.row_weight[:, None]).sum(),
            (row_sums.square() / self.lengths.clamp(min=1) * self.row_weight).sum(),
        )
        return torch.cat([torch.stack(scalars), self.counts, self._by_group(weighted)])


@dataclass
class MaskSums:
    """A vector of sums read on the host.

    Args:
        vector: (SIZE,), of all batches and processes.
    """

    vector: Tensor

    @classmethod
    def empty(cls) -> MaskSums:
        """No tokens yet."""
        return cls(torch.zeros(SIZE, dtype=torch.float64))

    def __add__(self, other: MaskSums) -> MaskSums:
        return MaskSums(self.vector + other.vector)

    def _scalar(self, name: str) -> float:
        return float(self.vector[SCALARS.index(name)])

    @property
    def tokens(self) -> float:
        """Response tokens counted."""
        return self._scalar("tokens")

    @property
    def mean(self) -> float:
        """Mean mask of a response token."""
        return self._scalar("sum") / max(self.tokens, 1.0)

    @property
    def kept_mean(self) -> float:
        """Mean of the masks that are not zero; 0 if all are."""
        kept = self.tokens - self._scalar("zeros")
        return self._scalar("sum") / kept if kept > 0 else 0.0

    @property
    def variance(self) -> float:
        """Variance of the mask over tokens."""
        return max(0.0, self._scalar("squares") / max(self.tokens, 1.0) - self.mean**2)

    def share(self, name: str) -> float:
        """``zeros``, ``at_limit`` or ``non_finite`` as a share of tokens, ``dead`` as a share of responses."""
        return self._scalar(name) / max(self._scalar("responses") if name == "dead" else self.tokens, 1.0)

    def explained(self) -> dict[str, float]:
        """R² of the mask by each grouping, and by the response (one constant a response), adjusted for the bins in use.

        The adjustment 1 − (1 − R²)(N − 1)/(N − bins) makes it zero on average for a mask that has nothing to do with the
        grouping, however few tokens there are.
        """
        size = len(GROUPINGS) * BINS
        counts, sums = self.vector[len(SCALARS) :].split(size)
        counts, sums = counts.view(-1, BINS), sums.view(-1, BINS)
        between = (sums.square() / counts.clamp(min=1e-9)).where(counts > 0, torch.zeros_like(sums)).sum(1)
        found = {
            name: self._adjusted(float(value), int((group > 0).sum()))
            for name, value, group in zip(GROUPINGS, between, counts, strict=True)
        }
        return found | {"response": self._adjusted(self._scalar("between"), int(self._scalar("responses")))}

    def _adjusted(self, between: float, groups: int) -> float:
        correction = self._scalar("sum") ** 2 / max(self.tokens, 1.0)
        total = self._scalar("squares") - correction
        if total <= 0 or self.tokens <= groups:
            return 0.0
        unexplained = 1 - (between - correction) / total
        return 1 - unexplained * (self.tokens - 1) / (self.tokens - groups)


def _wide(values: Tensor) -> Tensor:
    """float64, where the device has it."""
    return values.detach().float() if values.device.type == "mps" else values.detach().double()
