"""Counter-based random numbers: a hash of (seed, step, row, position, stream) instead of a generator's state.

What a token draws does not depend on how rows are batched, padded or spread over processes, nor on what was drawn
before, so k micro-batches equal one batch, two processes equal one, and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64's constants (Steele, Lea, Flood 2014) as signed 64-bit integers: int64 products wrap in torch
_GOLDEN = -7046029254386353131
_MIX1 = -4658895280553007687
_MIX2 = -7723592293110705685


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Unsigned right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: int64 → int64, every input bit reaches every output bit."""
    x = x + _GOLDEN
    x = (x ^ _logical_shift(x, 30)) * _MIX1
    x = (x ^ _logical_shift(x, 27)) * _MIX2
    return x ^ _logical_shift(x, 31)


def counter_uniform(seed: int, step: int, row: Tensor, position: Tensor, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), one a token.

    Args:
        seed, step, stream: integers that select the sequence of numbers.
        row: identity of each sequence, int64, (B,).
        position: index of each token in its sequence, int64, (B, T).

    Returns:
        float32, (B, T).
    """
    key = torch.zeros((), dtype=torch.int64, device=position.device)
    for part in (seed, step, stream):
        key = mix(key ^ part)
    key = mix(key ^ row.to(torch.int64))[:, None]  # (B, 1)
    bits = _logical_shift(mix(key ^ mix(position.to(torch.int64))), 40)  # 24 bits: exact in float32
    return bits.to(torch.float32) / (1 << 24)


def content_hash(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """An identity of each sequence from its tokens, whatever its padding, int64, (B,).

    Stands in for a row number where a batch carries none.
    """
    position = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    tokens = mix(mix(input_ids.to(torch.int64)) ^ mix(position.to(torch.int64) + 1))
    return mix((tokens * attention_mask.to(torch.int64)).sum(-1))
