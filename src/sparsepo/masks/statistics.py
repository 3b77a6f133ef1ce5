"""Sparsity statistics of masks over response tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_statistics(mask: Tensor, response_mask: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Sums from which averages over tokens follow, whatever the batching.

    Args:
        mask: mask of each token, (B, T).
        response_mask: true at response tokens, bool, (B, T).
        weight: weight of each sequence, (B,); None means ones.

    Returns:
        ``sum`` of the mask, ``zeros`` (number of tokens with mask exactly 0), ``tokens``, ``dead`` (sequences that keep
        no token), ``sequences``, ``max``: each a float32 scalar.
    """
    row = torch.ones(len(mask), device=mask.device) if weight is None else weight.float()
    tokens = response_mask.float() * row[:, None]
    values = mask.detach().float()
    kept = ((values > 0) & response_mask).any(-1)
    some = response_mask.any(-1)
    counted = values.where(tokens > 0, torch.zeros_like(values))
    return {
        "sum": (counted * tokens).sum(),
        "zeros": ((values == 0) * tokens).sum(),
        "tokens": tokens.sum(),
        "dead": ((~kept & some) * row).sum(),
        "sequences": (some * row).sum(),
        "max": counted.max() if counted.numel() else counted.new_zeros(()),
    }
