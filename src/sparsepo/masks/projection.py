"""Normalise hidden states and map them to a few numbers, keeping no copy of them for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Index = tuple[Tensor, Tensor]


def project(states: Sequence[Tensor], index: Index, weight: Tensor, eps: float | None) -> Tensor:
    """weight_l · normalise(states_l[index]) of L layers, in the weight's precision whatever the states' and autocast's.

    Backward recomputes what it needs from ``states``, so L layers of N tokens cost no L·N·H memory beside the
    states themselves. No gradient reaches ``states``: they are the frozen reference's.

    Args:
        states: hidden states, any floating type, L × (B, S, H).
        index: row and column of each of the N tokens, int64, (N,) each.
        weight: (L, K, H), float32 or float64.
        eps: added to the variance, or None: no normalisation.

    Returns:
        (L, N, K)
    """
    out: Tensor = _Project.apply(*index, weight, eps, *(state.detach() for state in states))
    return out


def _gather(states: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    # the blocks of a model that is spread over devices leave their states on several
    tokens = states[rows.to(states.device), columns.to(states.device)].to(weight.device, weight.dtype)  # (N, H)
    return tokens if eps is None else F.layer_norm(tokens, tokens.shape[-1:], eps=eps)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, weight: Tensor, eps: float | None, *states: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns, weight, *states)
        ctx.eps = eps
        out = weight.new_empty(len(states), len(rows), weight.shape[1])
        with torch.autocast(weight.device.type, enabled=False):
            for of_layer, state, own in zip(out, states, weight.detach(), strict=True):
                torch.mm(_gather(state, rows, columns, own, eps), own.T, out=of_layer)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, weight, *states = ctx.saved_tensors
        gradient = torch.empty_like(weight)
        with torch.autocast(weight.device.type, enabled=False):
            for of_layer, state, given in zip(gradient, states, grad, strict=True):
                torch.mm(given.T, _gather(state, rows, columns, weight, ctx.eps), out=of_layer)
        return None, None, gradient, None, *[None for _ in states]
