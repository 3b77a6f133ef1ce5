"""Sparsity statistics of masks over response tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_statistics(mask: Tensor, response_mask: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Sums from which averages over tokens follow, whatever the batching.

    Args:
        mask: mask of each token, (…, B, T); sums are over the last two dimensions.
        response_mask: true at response tokens, bool, (…, B, T).
        weight: weight of each sequence, (B,); None means ones.

    Returns:
        ``sum`` of the mask, ``zeros`` (number of tokens with mask exactly 0), ``tokens``, ``dead`` (sequences that keep
        no token), ``sequences``, ``max``: float32, (…) each.
    """
    row = torch.ones(mask.shape[-2], device=mask.device) if weight is None else weight.float()
    response_mask = response_mask.expand(mask.shape)
    tokens = response_mask.float() * row[:, None]
    values = mask.detach().float()
    kept = ((values > 0) & response_mask).any(-1)
    some = response_mask.any(-1)
    counted = values.where(tokens > 0, torch.zeros_like(values))
    per_token = torch.stack([counted * tokens, (values == 0) * tokens, tokens]).sum((-2, -1))
    per_row = torch.stack([(~kept & some) * row, some * row]).sum(-1)
    largest = counted.flatten(-2).amax(-1) if counted.shape[-1] and counted.shape[-2] else torch.zeros_like(per_row[0])
    return {
        "sum": per_token[0],
        "zeros": per_token[1],
        "tokens": per_token[2],
        "dead": per_row[0],
        "sequences": per_row[1],
        "max": largest,
    }
