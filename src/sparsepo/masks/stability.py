"""Comparing masks: those of the same tokens at two times, and the heads of several processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .noise import mix

_CHUNK = 1 << 20  # parameters hashed at once


@dataclass(frozen=True)
class Stability:
    """How alike the masks of the same tokens are at two times.

    Args:
        rank_correlation: Spearman's, ties at their average rank; None where one of the two is constant.
        kept_overlap: Jaccard index of the kept tokens (mask > 0) beyond chance: 1 the same tokens, 0 no more than two
            random choices of these sizes share, (J − J₀)/(1 − J₀); None where one time keeps all tokens or none.
        tokens: tokens compared.
    """

    rank_correlation: float | None
    kept_overlap: float | None
    tokens: int


def average_ranks(values: Tensor) -> Tensor:
    """Rank of each of N values, 1 … N, ties at their average, float64."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]


def compare_masks(before: Tensor, after: Tensor) -> Stability:
    """Compare the masks of N tokens at two times, (N,) each."""
    return Stability(_rank_correlation(before, after), _kept_overlap(before > 0, after > 0), len(before))


def _rank_correlation(before: Tensor, after: Tensor) -> float | None:
    if len(before) < 2 or bool((before == before[0]).all()) or bool((after == after[0]).all()):
        return None
    return float(torch.corrcoef(torch.stack([average_ranks(before), average_ranks(after)]))[0, 1])


def _kept_overlap(before: Tensor, after: Tensor) -> float | None:
    if before.all() or after.all() or not before.any() or not after.any():
        return None
    a, b = float(before.double().mean()), float(after.double().mean())
    union = float((before | after).double().mean())
    observed = float((before & after).double().mean()) / union
    chance = a * b / (a + b - a * b)
    return (observed - chance) / (1 - chance)


@torch.no_grad()
def fingerprint(module: nn.Module) -> int:
    """62 bits that depend on every bit, and the place, of each parameter and buffer that is whole on this process."""
    total: Tensor | int = 0
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for number, (_, tensor) in enumerate(sorted(tensors, key=lambda item: item[0])):
        if hasattr(tensor, "full_tensor"):  # a shard: other processes hold other parts
            continue
        flat = tensor.detach().reshape(-1)
        bits = flat.view(torch.int32) if flat.dtype == torch.float32 else flat.double().view(torch.int64)
        for first in range(0, len(bits), _CHUNK):
            part = bits[first : first + _CHUNK].long()
            place = torch.arange(first, first + len(part), device=part.device)
            total = total + mix(part ^ mix(place + (number << 40))).sum()
    return int(total) & ((1 << 62) - 1)
