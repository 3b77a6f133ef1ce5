"""Normalise hidden states and map them to a few numbers, keeping no copy of them for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Index = tuple[Tensor, Tensor]


def project(states: Tensor, index: Index, weight: Tensor, eps: float | None) -> Tensor:
    """weight · normalise(states[index]), in the weight's precision whatever the states' and autocast's.

    Backward recomputes what it needs from ``states``, so L layers of N tokens cost no L·N·H memory beside the
    states themselves. No gradient reaches ``states``: they are the frozen reference's.

    Args:
        states: hidden states, any floating type, (B, S, H).
        index: row and column of each of the N tokens, int64, (N,) each.
        weight: (K, H), float32 or float64.
        eps: added to the variance, or None: no normalisation.

    Returns:
        (N, K)
    """
    out: Tensor = _Project.apply(states.detach(), *index, weight, eps)
    return out


def _gather(states: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    # the blocks of a model that is spread over devices leave their states on several
    tokens = states[rows.to(states.device), columns.to(states.device)].to(weight.device, weight.dtype)  # (N, H)
    return tokens if eps is None else F.layer_norm(tokens, tokens.shape[-1:], eps=eps)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        ctx.save_for_backward(states, rows, columns, weight)
        ctx.eps = eps
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(_gather(states, rows, columns, weight, eps), weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, rows, columns, weight = ctx.saved_tensors
        with torch.autocast(states.device.type, enabled=False):
            return None, None, None, grad.T @ _gather(states, rows, columns, weight, ctx.eps), None
