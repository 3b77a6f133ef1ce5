"""One mask head: the map from a token's hidden states to one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02  # Hugging Face's initializer_range, which the paper's heads start with

# Buffers and their values where nothing steers the head; files from before there was one lack them
BUFFERS = {"offset": 0.0, "scale": 1.0, "start_sparsity": -1.0, "signal_size": 0.0}

# Multiplies layer l's activations (l = 0 … L−1) or, at l = L, the mask; (N,)
Dropper = Callable[[int, Tensor], Tensor]


class MaskHead(nn.Module):
    """x = scale · (Σ_l v_l act(w_l · LN(h_l) + b_l) − offset), which a gate turns into the mask; one LayerNorm is shared by
    all layers (the official ``simple_all``).

    Args:
        hidden_size: H.
        layers: number of layers read, L.
        normalised: with LayerNorm and mixer; without (last layer only, L = 1) x = scale · (w · h + b − offset).
        width: inner width W of a two-layer map w_l · (W_l x + c_l) + b_l; None: one layer.
        gelu: with GELU between the two layers; without, linear as published.
        norm_eps: of the LayerNorm.
        slope: of act below zero: 0 is ReLU, 1 the identity.

    Parameters: ``norm.weight``, ``norm.bias`` (H), ``layer_weight`` (L, H), ``layer_bias`` (L), ``mixer_weight`` (L);
    with ``width`` also ``inner_weight`` (L, W, H), ``inner_bias`` (L, W), and ``layer_weight`` is (L, W).
    Buffers, scalars. Moved by the sparsity controller alone: ``offset`` (0), ``scale`` (1) and ``start_sparsity`` (share of
    zeros when it took over; −1 before). By the fit to log-ratios alone: ``signal_size`` (their running mean size; 0 before
    there is one).
    """

    offset: Tensor
    scale: Tensor
    start_sparsity: Tensor
    signal_size: Tensor
    inner_weight: Tensor | None
    inner_bias: Tensor | None
    mixer_weight: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        layers: int,
        *,
        normalised: bool,
        width: int | None,
        norm_eps: float,
        slope: float = 0.0,
        gelu: bool = False,
    ) -> None:
        super().__init__()

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.float32))

        self.slope, self.gelu = slope, gelu
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps, dtype=torch.float32) if normalised else None
        self.register_parameter("inner_weight", parameter(layers, width, hidden_size) if width else None)
        self.register_parameter("inner_bias", parameter(layers, width) if width else None)
        self.layer_weight = parameter(layers, width or hidden_size)
        self.layer_bias = parameter(layers)
        self.register_parameter("mixer_weight", parameter(layers) if normalised else None)
        for name, value in BUFFERS.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    @torch.no_grad()
    def initialise(self, ones: bool, generator: torch.Generator) -> None:
        """Start from (about) ones or as published; draws on the CPU from ``generator`` only."""
        if self.layer_bias.is_meta:  # shapes only, values are loaded
            return
        layers = len(self.layer_bias)
        # without a LayerNorm the states' scale is unknown: keep w · h small beside the bias
        std = INIT_STD if self.norm is not None or not ones else INIT_STD / math.sqrt(self.hidden_size)
        inner = 1 / math.sqrt(self.hidden_size) if self.gelu else std  # GELU is all but linear near zero
        weights = [(self.inner_weight, inner), (self.layer_weight, INIT_STD if self.inner_weight is not None else std)]
        for weight, spread in weights:
            if weight is not None:
                weight.copy_(torch.empty(weight.shape, device="cpu").normal_(0.0, spread, generator=generator))
        self.layer_bias.fill_(1.0 if ones else 0.0)
        if self.mixer_weight is not None:
            drawn = torch.empty(layers, device="cpu").normal_(0.0, INIT_STD, generator=generator)
            self.mixer_weight.copy_(torch.full((layers,), 1.0 / layers) if ones else drawn)
        for name, value in BUFFERS.items():
            getattr(self, name).fill_(value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """States without the buffers mean the values that change nothing."""
        for name, value in BUFFERS.items():
            state_dict.setdefault(prefix + name, torch.tensor(value, dtype=torch.float32))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def hidden_size(self) -> int:
        """H."""
        return (self.layer_weight if self.inner_weight is None else self.inner_weight).shape[-1]

    def _maps(self) -> Tensor:
        """What is applied to the normalised states, before the LayerNorm's weight and bias, (L, K, H), K = 1 or W."""
        return self.layer_weight[:, None] if self.inner_weight is None else self.inner_weight

    def projections(self, dtype: torch.dtype) -> Tensor:
        """What multiplies the normalised states of the layers, the LayerNorm's weight folded in; (L, K, H)."""
        weight = self._maps()
        return (weight if self.norm is None else weight * self.norm.weight).to(dtype)

    def layer_values(self, projected: Tensor) -> Tensor:
        """act(w_l · LN(h_l) + b_l) from what :meth:`projections` gave, without act where there is no mixer;
        (L, N, K) → (L, N)."""
        dtype = projected.dtype
        if self.norm is not None:
            projected = projected + (self._maps().to(dtype) @ self.norm.bias.to(dtype))[:, None]
        if self.inner_bias is None:
            value = projected[..., 0]
        else:
            inner = projected + self.inner_bias[:, None].to(dtype)
            inner = F.gelu(inner) if self.gelu else inner
            value = (inner @ self.layer_weight[..., None].to(dtype))[..., 0]
        value = value + self.layer_bias[:, None].to(dtype)
        return value if self.mixer_weight is None else self.act(value)

    def mixed(self, values: Tensor, drop: Dropper | None = None) -> Tensor:
        """Σ_l v_l a_l from the layers' values, (L, N) → (N,); without a mixer the one layer's value."""
        if self.mixer_weight is None:
            return values[0]
        if drop is not None:
            values = torch.stack([drop(layer, value) for layer, value in enumerate(values)])
        return (self.mixer_weight[:, None].to(values.dtype) * values).sum(0)

    def shifted(self, mixed: Tensor) -> Tensor:
        """x, what the gate reads, (N,)."""
        return self.scale.to(mixed.dtype) * (mixed - self.offset.to(mixed.dtype))

    def act(self, x: Tensor) -> Tensor:
        """ReLU, leaky where a slope is set."""
        return torch.relu(x) if self.slope == 0 else F.leaky_relu(x, self.slope)
