"""One mask head: the map from a token's hidden states to one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

INIT_STD = 0.02  # Hugging Face's initializer_range, which the paper's heads start with

# Multiplies layer l's activations (l = 0 … L−1) or, at l = L, the mask; (N,)
Dropper = Callable[[int, Tensor], Tensor]


class MaskHead(nn.Module):
    """m = act(Σ_l v_l act(w_l · LN(h_l) + b_l)), one LayerNorm shared by all layers (METHOD: ``simple_all``).

    Args:
        hidden_size: H.
        layers: number of layers read, L.
        normalised: with LayerNorm and mixer; without (last layer only, L = 1) m = act(w · h + b).
        width: inner width W of a two-layer map w_l · (W_l x + c_l) + b_l, linear as published; None: one layer.
        norm_eps: of the LayerNorm.
        relu: act is ReLU; otherwise the identity, and masks are signed.

    Parameters: ``norm.weight``, ``norm.bias`` (H), ``layer_weight`` (L, H), ``layer_bias`` (L), ``mixer_weight`` (L);
    with ``width`` also ``inner_weight`` (L, W, H), ``inner_bias`` (L, W), and ``layer_weight`` is (L, W).
    """

    inner_weight: Tensor | None
    inner_bias: Tensor | None
    mixer_weight: Tensor | None

    def __init__(
        self, hidden_size: int, layers: int, *, normalised: bool, width: int | None, norm_eps: float, relu: bool
    ) -> None:
        super().__init__()

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.float32))

        self.relu = relu
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps, dtype=torch.float32) if normalised else None
        self.register_parameter("inner_weight", parameter(layers, width, hidden_size) if width else None)
        self.register_parameter("inner_bias", parameter(layers, width) if width else None)
        self.layer_weight = parameter(layers, width or hidden_size)
        self.layer_bias = parameter(layers)
        self.register_parameter("mixer_weight", parameter(layers) if normalised else None)

    @torch.no_grad()
    def initialise(self, ones: bool, generator: torch.Generator) -> None:
        """Start from (about) ones or as published; draws on the CPU from ``generator`` only."""
        if self.layer_bias.is_meta:  # shapes only, values are loaded
            return
        layers = len(self.layer_bias)
        # without a LayerNorm the states' scale is unknown: keep w · h small beside the bias
        std = INIT_STD if self.norm is not None or not ones else INIT_STD / math.sqrt(self.hidden_size)
        weights = [(self.inner_weight, std), (self.layer_weight, INIT_STD if self.inner_weight is not None else std)]
        for weight, spread in weights:
            if weight is not None:
                weight.copy_(torch.empty(weight.shape, device="cpu").normal_(0.0, spread, generator=generator))
        self.layer_bias.fill_(1.0 if ones else 0.0)
        if self.mixer_weight is not None:
            drawn = torch.empty(layers, device="cpu").normal_(0.0, INIT_STD, generator=generator)
            self.mixer_weight.copy_(torch.full((layers,), 1.0 / layers) if ones else drawn)

    @property
    def hidden_size(self) -> int:
        """H."""
        return (self.layer_weight if self.inner_weight is None else self.inner_weight).shape[-1]

    def projection(self, layer: int, dtype: torch.dtype) -> Tensor:
        """What multiplies the normalised state of a layer, the LayerNorm's weight folded in; (K, H), K = 1 or W."""
        weight = self.layer_weight[layer][None] if self.inner_weight is None else self.inner_weight[layer]
        return (weight if self.norm is None else weight * self.norm.weight).to(dtype)

    def layer_value(self, layer: int, projected: Tensor) -> Tensor:
        """act(w_l · LN(h_l) + b_l) from what :meth:`projection` gave; (N, K) → (N,)."""
        dtype = projected.dtype
        weight = self.layer_weight[layer][None] if self.inner_weight is None else self.inner_weight[layer]
        if self.norm is not None:
            projected = projected + (weight.to(dtype) @ self.norm.bias.to(dtype))
        if self.inner_bias is None:
            value = projected[:, 0]
        else:
            value = (projected + self.inner_bias[layer].to(dtype)) @ self.layer_weight[layer].to(dtype)
        return self.act(value + self.layer_bias[layer].to(dtype))

    def mixed(self, values: Sequence[Tensor], drop: Dropper, open_mask: bool = False) -> Tensor:
        """The mask from the L layers' values, (N,); ``open_mask``: before its ReLU."""
        if self.mixer_weight is None:
            return drop(len(values), values[0])
        total = torch.zeros_like(values[0])
        for layer, value in enumerate(values):
            total = total + self.mixer_weight[layer].to(value.dtype) * drop(layer, value)
        return drop(len(values), total if open_mask else self.act(total))

    def act(self, x: Tensor) -> Tensor:
        """ReLU, whose zeros are exact, or the identity."""
        return torch.relu(x) if self.relu else x
