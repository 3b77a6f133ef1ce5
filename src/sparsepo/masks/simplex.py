"""Sparsemax and 1.5-entmax over a response's tokens, in a form whose sparsity does not depend on its length.

Both are powers of a shifted ReLU, m_t = max(z_t − θ, 0)^p, with the one θ at which the response's mean is 1:

- p = 1: m = T · sparsemax(z / T)                (Martins and Astudillo 2016, arXiv 1602.02068)
- p = 2: m = T · entmax_1.5(2 z / √T)            (Peters, Niculae and Martins 2019, arXiv 1905.05702)

Dividing by T (or √T) is what keeps a long response from being sparser than a short one of equal spread: θ then depends on
the distribution of z alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shifted_power(values: Tensor, lengths: Tensor, power: int) -> Tensor:
    """max(z − θ, 0)^p with mean 1 over each row's tokens.

    Args:
        values: z, (B, M), −inf after a row's end.
        lengths: tokens of each row, (B, 1), in the precision of ``values``; 0 gives zeros.
        power: p, 1 or 2.

    Returns:
        (B, M), 0 after a row's end. Gradients flow.
    """
    threshold = _threshold(values.detach(), lengths, power)
    with torch.no_grad():
        slope = (values - threshold).clamp(min=0) ** (power - 1) * (values > threshold)
        share = slope / slope.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    # θ's own gradient (implicit function theorem): Σ m = T gives dθ = Σ m' dz / Σ m'; its value stays as it is
    finite = torch.where(torch.isfinite(values), values, torch.zeros_like(values))
    moved = threshold + (share * (finite - finite.detach())).sum(-1, keepdim=True)
    above = torch.where(torch.isfinite(values), finite - moved, torch.zeros_like(values))
    return above.clamp(min=0) ** power


def _threshold(values: Tensor, lengths: Tensor, power: int) -> Tensor:
    """θ by sorting, exact, (B, 1)."""
    if values.shape[1] == 0:
        return values.new_zeros((len(values), 1))
    top = values.amax(-1, keepdim=True)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    ordered = (values - top).sort(dim=-1, descending=True).values
    there = torch.isfinite(ordered)
    z = torch.where(there, ordered, torch.zeros_like(ordered))
    count = torch.arange(1, z.shape[1] + 1, device=z.device, dtype=z.dtype)
    total = z.cumsum(-1)
    if power == 1:
        candidates = (total - lengths) / count
    else:  # Σ_k (z − θ)² = T over the k largest, a quadratic in θ
        mean = total / count
        spread = (z * z).cumsum(-1) - count * mean * mean
        candidates = mean - ((lengths - spread) / count).clamp(min=0).sqrt()
    support = ((candidates < z) & there).sum(-1, keepdim=True).clamp(min=1)
    return candidates.gather(-1, support - 1) + top
