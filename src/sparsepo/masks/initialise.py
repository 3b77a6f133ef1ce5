"""Start a learned mask from activation (MaPO) masks by regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .learned import LearnedMask


@dataclass(frozen=True)
class FitResult:
    """How well a fitted head follows its targets.

    Args:
        r2: 1 − residual / variance of the targets (0 where they are constant and missed, 1 where met).
        correlation: Pearson's, 0 where either side is constant.
        loss: mean squared error.
        zeros: share of tokens whose mask is exactly zero.
    """

    r2: float
    correlation: float
    loss: float
    zeros: float


def fit_to_targets(
    mask: LearnedMask,
    hidden: Tensor | Sequence[Tensor],
    target: Tensor,
    target_kl: Tensor | None = None,
    *,
    steps: int = 300,
    learning_rate: float = 0.02,
    weight_decay: float = 0.0,
    restart: bool = True,
) -> dict[str, FitResult]:
    """Fit every head to given masks by full-batch Adam on the mean squared error, from the start at ones.

    The regression is on what the gate reads, without the gate: a ReLU (those of the layers stay) that is once shut for all
    tokens would stay so. The quality reported is that of max(x, 0), whatever the gate.
    Best weights seen are kept. No dropout, no global random numbers; deterministic given the mask's seed and the data.

    Args:
        mask: the mask, changed in place.
        hidden: states of the N response tokens at the reading position, (L, N, H) or L tensors (N, H).
        target: masks to imitate, ≥ 0, (N,).
        target_kl: another target for the KL head of an independent mask; None: the same.
        steps, learning_rate, weight_decay: of Adam(W); the rate falls to zero along a cosine.
        restart: begin from the start that ``mask.init`` and ``mask.seed`` name (from ones unless ``published``).

    Returns:
        the fit by head name (``shared``, ``reward``, ``kl``).

    Raises:
        ValueError: no tokens, shapes that disagree, or targets that are not finite.
    """
    states = [state[None].detach() for state in hidden]
    states = mask._checked_states(states)
    targets = _checked_targets(mask, states, target, target_kl)
    if restart:
        mask.reset_parameters()
    device = states[0].device
    index = torch.zeros(len(target), dtype=torch.int64, device=device), torch.arange(len(target), device=device)
    needed = [p.requires_grad for p in mask.parameters()]
    mask.requires_grad_(True)
    try:
        with torch.enable_grad():
            _descend(mask, states, index, targets, steps, learning_rate, weight_decay)
        with torch.no_grad():
            fitted = [torch.relu(value) for value in mask.mixed_values(states, index)]
    finally:
        for parameter, need in zip(mask.parameters(), needed, strict=True):
            parameter.requires_grad_(need)
    return {name: _quality(m, t) for name, m, t in zip(mask.heads, fitted, targets, strict=True)}


def _checked_targets(mask: LearnedMask, states: list[Tensor], target: Tensor, target_kl: Tensor | None) -> list[Tensor]:
    tokens = states[0].shape[1]
    if tokens == 0:
        raise ValueError("There are no tokens to fit the mask to.")
    names = list(mask.heads)
    if target_kl is not None and "kl" not in names:
        raise ValueError(f"target_kl is given, but the mask has no KL head (heads: {', '.join(names)}).")
    targets = [target_kl if name == "kl" and target_kl is not None else target for name in names]
    for values in targets:
        if values.shape != (tokens,):
            raise ValueError(f"target has shape {tuple(values.shape)}, but there are {tokens} tokens.")
        if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
            raise ValueError("target holds values that are negative or not finite.")
    return [values.detach().to(states[0].device, torch.float32) for values in targets]


def _descend(
    mask: LearnedMask,
    states: list[Tensor],
    index: tuple[Tensor, Tensor],
    targets: list[Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    optimizer = torch.optim.AdamW(mask.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
    best, kept = float("inf"), {name: value.clone() for name, value in mask.state_dict().items()}
    for step in range(steps + 1):
        optimizer.zero_grad()
        values = mask.mixed_values(states, index)
        loss = torch.stack([F.mse_loss(v, t) for v, t in zip(values, targets, strict=True)]).sum()
        if loss.item() < best:
            best, kept = loss.item(), {name: value.clone() for name, value in mask.state_dict().items()}
        if step < steps:
            loss.backward()
            optimizer.step()
            schedule.step()
    mask.load_state_dict(kept)
    optimizer.zero_grad()


def _quality(fitted: Tensor, target: Tensor) -> FitResult:
    residual = ((fitted - target) ** 2).sum().item()
    x, y = fitted - fitted.mean(), target - target.mean()
    spread, product = (y**2).sum().item(), (x.norm() * y.norm()).item()
    return FitResult(
        r2=1 - residual / spread if spread > 0 else float(residual == 0),
        correlation=(x * y).sum().item() / product if product > 0 else 0.0,
        loss=residual / len(target),
        zeros=(fitted == 0).float().mean().item(),
    )
