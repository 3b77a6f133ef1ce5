"""The language-model head as data: what turns a hidden state into logits, without a model or a config."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .products import autocast_operand


@dataclass(frozen=True)
class LMHead:
    """logits = softcap(scale · (W h + b)).

    Args:
        weight: W, (V, H).
        bias: b, (V,), or None.
        scale: factor on the logits before the cap (Cohere's ``logit_scale``, 1/Granite's ``logits_scaling``, …).
        softcap: c of c · tanh(z / c) (Gemma's ``final_logit_softcapping``), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def row_dtype(self, hidden: Tensor) -> torch.dtype:
        """Type of rows of logits: float32 whatever the weights' and states' types, float64 where either is."""
        return torch.promote_types(torch.promote_types(self.weight.dtype, hidden.dtype), torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., H) → (..., V), float32 whatever the weights' type (float64 stays).

        bf16 logits would put a floor of about 1e-3 under the KL, which early in training is no larger than that.
        """
        dtype = self.row_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            logits = F.linear(hidden.to(self.weight.device, dtype), self.weight.to(dtype), bias)
            if self.scale != 1.0:
                logits = logits * self.scale
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def operand_head(head: LMHead) -> LMHead:
    """The head as the run's mixed precision multiplies it; gradients and the rows of logits stay float32."""
    weight = autocast_operand(head.weight)
    return head if weight is head.weight else replace(head, weight=weight)
