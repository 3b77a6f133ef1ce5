"""What a scorer fills while it walks over groups of pairs: (R, T) arrays, losses, and the objective's answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives.scores import PairLoss, PairScores

from .dense import ScorerInputs, split_pairs
from .rows import RowStatistics

Objective = Callable[[PairScores], PairLoss]
STATISTICS = ("entropy", "mean_logits", "is_top1")


class Results:
    """(R, T) arrays of one call, zero where nothing was scored.

    Args:
        inputs: what the scorer was given.
        objective: called on groups of pairs.
        dtype: of the arrays.
        with_gradient: whether gradients are wanted.
        need_kl: whether there is a KL to store.
        masks: (reward, kl) masks, or None for ones.
    """

    def __init__(
        self,
        inputs: ScorerInputs,
        objective: Objective,
        dtype: torch.dtype,
        with_gradient: bool,
        need_kl: bool,
        masks: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.inputs, self.objective, self.with_gradient = inputs, objective, with_gradient
        self.keep, self.response, self.masks = inputs.scored, inputs.response_mask, masks
        names = ["logps"]
        if inputs.has_reference:
            names += ["ref_logps", *(["kl"] if need_kl else [])]
        names += STATISTICS if inputs.statistics else ()
        self.arrays = {name: torch.zeros(self.keep.shape, dtype=dtype, device=self.keep.device) for name in names}
        pairs = len(self.keep) // 2
        self.loss = torch.zeros(pairs, dtype=dtype, device=self.keep.device)
        self.rewards = torch.zeros(2, pairs, dtype=dtype, device=self.keep.device)
        self.mask_grads = None if masks is None else [torch.zeros_like(m) if m.requires_grad else None for m in masks]

    def put(self, sequences: Tensor, found: RowStatistics) -> None:
        """Scatter the values of a group's kept tokens."""
        kept = self.keep[sequences]
        for name, array in self.arrays.items():
            part = torch.zeros_like(array[sequences])
            part[kept] = getattr(found, name)
            array[sequences] = part

    def token_gradients(self, sequences: Tensor, pairs: slice) -> list[Tensor] | None:
        """Evaluate the objective on a group: [∂L/∂log π, ∂L/∂k] of its kept tokens, (n,) each, or None without gradient.

        Fills losses and rewards of the group, and the gradients of its masks.
        """
        leaves: dict[str, Tensor] = {
            name: self.arrays[name][sequences] for name in ("logps", "kl") if name in self.arrays
        }
        masks = [] if self.masks is None else [mask.detach()[sequences] for mask in self.masks]
        if self.with_gradient:
            for tensor in (*leaves.values(), *masks):
                tensor.requires_grad_(True)
        result, total = self._evaluate(leaves, masks, sequences, pairs)
        self.loss[pairs] = result.loss.detach().to(self.loss.dtype)
        self.rewards[0, pairs], self.rewards[1, pairs] = result.chosen_rewards, result.rejected_rewards
        if not self.with_gradient or not total.requires_grad:
            return None
        grads = torch.autograd.grad(total, [*leaves.values(), *masks], allow_unused=True)
        for target, gradient in zip(self.mask_grads or (), grads[len(leaves) :], strict=False):
            if target is not None and gradient is not None:
                target[sequences] = gradient.to(target.dtype)
        return self._kept(dict(zip(leaves, grads, strict=False)), sequences)

    def directions(self, sequences: Tensor, pairs: slice) -> list[Tensor]:
        """The group's token gradients where policy = reference, [(n,), (n,)].

        For an objective with a fixed direction those elsewhere are the same up to one factor a pair, so that they are
        known before any logits are.
        """
        names: list[str] = [name for name in ("logps", "kl") if name in self.arrays]
        shape = (len(sequences), self.keep.shape[1])
        leaves = {n: torch.zeros(shape, dtype=self.loss.dtype, device=self.keep.device).requires_grad_() for n in names}
        masks = [] if self.masks is None else [mask.detach()[sequences] for mask in self.masks]
        _, total = self._evaluate(leaves, masks, sequences, pairs, at_reference=True)
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return self._kept(dict(zip(leaves, grads, strict=True)), sequences)

    def _evaluate(
        self,
        leaves: dict[str, Tensor],
        masks: list[Tensor],
        sequences: Tensor,
        pairs: slice,
        at_reference: bool = False,
    ) -> tuple[PairLoss, Tensor]:
        with torch.enable_grad() if self.with_gradient else torch.no_grad():
            ref_logps = self.arrays.get("ref_logps")
            if ref_logps is not None:
                ref_logps = torch.zeros_like(leaves["logps"]) if at_reference else ref_logps[sequences]
            weight = self.inputs.anchor_weight
            scores = split_pairs(
                leaves["logps"],
                None if ref_logps is None else ref_logps.detach(),
                leaves.get("kl"),
                TokenMasks(masks[0], masks[1]) if masks else None,
                self.response[sequences],
                None if weight is None else weight[sequences],
            )
            result = self.objective(scores)
            return result, (result.loss * self.inputs.weights()[pairs]).sum()

    def _kept(self, grads: dict[str, Tensor | None], sequences: Tensor) -> list[Tensor]:
        kept = self.keep[sequences]
        zero = torch.zeros(kept.shape, dtype=self.loss.dtype, device=kept.device)
        found = (grads.get(name) for name in ("logps", "kl"))
        return [(zero if gradient is None else gradient)[kept] for gradient in found]

    def pair_loss(self) -> PairLoss:
        """The objective's results of all pairs."""
        return PairLoss(self.loss, self.rewards[0], self.rewards[1])

    def weighted_loss(self) -> Tensor:
        """Σ_p weight_p · loss_p."""
        return (self.loss * self.inputs.weights()).sum()
