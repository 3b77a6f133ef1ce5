"""What a GPU does otherwise than a CPU, for steps that are followed on fake tensors of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from .settings import PlanSettings


@contextmanager
def as_on_cuda(settings: PlanSettings, on_gpu: bool) -> Iterator[None]:
    """Two things that CUDA does otherwise than a CPU: mixed precision computes layer norms in float32, and attention has
    kernels of its own, which save other tensors. And on both: rows are not packed, which transformers asks of values."""
    from transformers import masking_utils

    plain = nn.functional.layer_norm

    def in_float32(*args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return plain(*args, **kwargs)

        def wide(value: Any) -> Any:
            return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value

        return plain(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})

    unpacked = patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None)
    if not on_gpu:
        with unpacked:
            yield
        return
    with (
        unpacked,
        patch.object(nn.functional, "layer_norm", in_float32) if settings.autocast else nullcontext(),
        patch.object(nn.functional, "scaled_dot_product_attention", _cuda_attention),
    ):
        yield


def _cuda_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Flash attention for half precision without a mask of its own, else memory-efficient attention, as PyTorch chooses."""
    half = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value = (tensor.to(half) for tensor in (query, key, value))
    out: Tensor
    if attn_mask is None and half != torch.float32:
        out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, False, scale=scale)[
            0
        ]
        return out
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    bias = attn_mask
    if bias is not None:
        bias = torch.zeros_like(bias, dtype=half) if bias.dtype == torch.bool else bias.to(half)
        bias = bias.expand(*query.shape[:2], *bias.shape[-2:])
    out = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, is_causal, scale=scale
    )[0]
    return out
