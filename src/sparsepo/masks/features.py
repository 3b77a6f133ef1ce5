"""Feature means of activations: from whatever shape an architecture gives to one number a token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Architectures whose fused projection is [all q | all k | all v]; others' layouts are below.
_CONCATENATED = ("gpt2", "openai-gpt", "phi3", "mpt", "dbrx")
_INTERLEAVED = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")


def feature_mean(values: Tensor, dims: int | tuple[int, ...] = -1) -> Tensor:
    """Mean over feature dimensions in float32; what is below the mean's own rounding error counts as zero.

    The output of a LayerNorm at its start has mean zero: without the floor a mask would rescale rounding noise, which
    depends on the batch, to [0, 1].
    """
    mean = values.mean(dims, dtype=torch.float32)
    count = values.numel() / max(mean.numel(), 1)
    if count == 0:
        return mean
    size = torch.linalg.vector_norm(values, dim=dims, dtype=torch.float32) / math.sqrt(count)
    floor = 4 * torch.finfo(torch.float32).eps + 2 * torch.finfo(values.dtype).eps / math.sqrt(count)
    return torch.where(mean.abs() > floor * size, mean, torch.zeros_like(mean))


def token_means(values: Any, shape: tuple[int, int], site: str) -> Tensor:
    """(B, S, F) or flattened (B · S, F) → (B, S). Raises ``ValueError`` naming the site for any other shape."""
    if isinstance(values, (tuple, list)):
        values = values[0]
    if isinstance(values, Tensor):
        if values.dim() == 3 and tuple(values.shape[:2]) == shape:
            return feature_mean(values)
        if values.dim() == 2 and len(values) == shape[0] * shape[1]:
            return feature_mean(values).reshape(shape)
    got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    raise ValueError(
        f"The activation {site} has shape {got}, expected ({shape[0]}, {shape[1]}, features): this architecture's "
        "layout is not known. Leave its group out of the mask's groups, or use a learned mask."
    )


def head_means(values: Tensor, shape: tuple[int, int], site: str) -> Tensor:
    """(B, heads, S, D), as attention functions get queries, keys and values → (B, S)."""
    if values.dim() != 4 or (values.shape[0], values.shape[2]) != shape:
        raise ValueError(
            f"The activation {site} has shape {tuple(values.shape)}, expected ({shape[0]}, heads, {shape[1]}, "
            "features): this architecture's layout is not known. Leave attn out of the mask's groups."
        )
    return feature_mean(values, (1, 3))


def split_fused(values: Tensor, config: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """Queries, keys and values of a fused projection (B, S, F), each (B, S, ·), or None: unknown layout."""
    heads = getattr(config, "num_attention_heads", None)
    kind = getattr(config, "model_type", None)
    if not isinstance(heads, int):
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads, interleaved = _kv_layout(config, kind, heads)
    if kv_heads is None or values.shape[-1] != (heads + 2 * kv_heads) * head_dim:
        return None
    if not interleaved:
        q, k, v = values.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=-1)
        return q, k, v
    grouped = values.unflatten(-1, (kv_heads, heads // kv_heads + 2, head_dim))  # each key head: its queries, k, v
    return grouped[..., :-2, :].flatten(2), grouped[..., -2, :].flatten(2), grouped[..., -1, :].flatten(2)


def _kv_layout(config: Any, kind: str | None, heads: int) -> tuple[int | None, bool]:
    """Number of key heads (None: layout unknown) and whether each lies beside its queries."""
    if kind in _CONCATENATED:
        attention = getattr(config, "attn_config", config)
        return getattr(attention, "kv_n_heads", None) or getattr(config, "num_key_value_heads", None) or heads, False
    if kind in _INTERLEAVED:
        return heads, True
    if kind == "gpt_bigcode":
        return (1, False) if config.multi_query else (heads, True)
    if kind == "falcon":
        if config.new_decoder_architecture:
            return config.num_kv_heads, True
        return (1, True) if config.multi_query else (heads, True)
    return None, False
