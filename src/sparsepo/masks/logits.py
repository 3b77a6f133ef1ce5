"""Mean of the logits over the vocabulary, without the logits where the head is linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TILE = 1 << 24  # logits held at once where they must be computed


def mean_logits(hidden: Tensor, head: nn.Module, config: Any) -> Tensor:
    """Mean logit of each token, float32, (B, S).

    scale · (h · mean_v W_v + mean b): exact. Under a soft-cap the logits are computed in tiles and averaged after it.

    Args:
        hidden: last hidden states, (B, S, H).
        head: the language-model head, a linear map.
        config: the model's text configuration, for the logits' scale and cap.
    """
    scale, cap = _scale(config), getattr(config, "final_logit_softcapping", None)
    weight = getattr(head, "weight", None)
    with torch.autocast(hidden.device.type, enabled=False):
        if cap is None and isinstance(weight, Tensor) and weight.is_floating_point():
            row = _whole(weight.detach().mean(0, dtype=torch.float32)).to(hidden.device)
            mean = hidden.float() @ row
            bias = getattr(head, "bias", None)
            return (mean if bias is None else mean + _whole(bias.detach().float().mean()).to(hidden.device)) * scale
        tokens = hidden.flatten(0, 1)
        vocabulary = getattr(config, "vocab_size", None) or 1 << 17
        means = []
        for tile in tokens.split(max(1, _TILE // vocabulary)):
            logits = head(
                tile if not isinstance(weight, Tensor) or not weight.is_floating_point() else tile.to(weight.dtype)
            )
            logits = logits.float() * scale
            means.append((logits if cap is None else cap * torch.tanh(logits / cap)).mean(-1))
        return torch.cat(means).reshape(hidden.shape[:2]).to(hidden.device)


def _whole(value: Tensor) -> Tensor:
    """A sharded tensor's full value."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _scale(config: Any) -> float:
    """Factor on the logits, under the names that architectures give it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)):
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    if not isinstance(divisor, (int, float)):
        return 1.0
    return float(divisor) if getattr(config, "model_type", None) == "hyperclovax" else 1.0 / float(divisor)
