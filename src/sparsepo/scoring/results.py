"""What a scorer fills while it walks over groups of pairs: (R, T) arrays, losses, and the objective's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives.scores import PairLoss, PairScores

from .dense import ScorerInputs, split_pairs
from .rows import RowStatistics

Objective = Callable[[PairScores], PairLoss]
STATISTICS = ("entropy", "mean_logits", "is_top1")


@dataclass
class Group:
    """Consecutive pairs whose rows are worked on together, n kept rows, those of chosen sequences first.

    Args:
        index: their places among the kept rows of the call, (n,).
        flat: their places in the flattened (R, T) arrays, (n,).
        local: their places in the flattened arrays of the group's own sequences, (n,).
        sequences: rows of the (R, T) arrays that the group's sequences have; None: all of them, in order.
        pairs: the pairs.
    """

    index: Tensor
    flat: Tensor
    local: Tensor
    sequences: Tensor | None
    pairs: slice

    def of(self, array: Tensor) -> Tensor:
        """The group's sequences of an (R, T) array."""
        return array if self.sequences is None else array[self.sequences]


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

    def put(self, group: Group, found: RowStatistics) -> None:
        """Scatter the values of a group's kept tokens."""
        for name, array in self.arrays.items():
            array.view(-1)[group.flat] = getattr(found, name)

    def token_gradients(self, group: Group) -> list[Tensor] | None:
        """Evaluate the objective on a group: [∂L/∂log π, ∂L/∂k] of its kept tokens, (n,) each, or None without gradient.

        Fills losses and rewards of the group, and the gradients of its masks.
        """
        leaves: dict[str, Tensor] = {
            name: group.of(self.arrays[name]).detach() for name in ("logps", "kl") if name in self.arrays
        }
        masks = [] if self.masks is None else [group.of(mask).detach() for mask in self.masks]
        wanted = [*leaves.values()]
        if self.mask_grads is not None:
            wanted += [mask for mask, gradient in zip(masks, self.mask_grads, strict=True) if gradient is not None]
        if self.with_gradient:
            for tensor in wanted:
                tensor.requires_grad_(True)
        result, total = self._evaluate(leaves, masks, group)
        pairs = group.pairs
        self.loss[pairs] = result.loss.detach().to(self.loss.dtype)
        self.rewards[0, pairs], self.rewards[1, pairs] = result.chosen_rewards, result.rejected_rewards
        if not self.with_gradient or not total.requires_grad:
            return None
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        targets = [gradient for gradient in self.mask_grads or () if gradient is not None]
        for target, gradient in zip(targets, grads[len(leaves) :], strict=True):
            if gradient is not None:
                target[slice(None) if group.sequences is None else group.sequences] = gradient.to(target.dtype)
        return self._kept(dict(zip(leaves, grads, strict=False)), group)

    def directions(self, group: Group) -> list[Tensor]:
        """The group's token gradients where policy = reference, [(n,), (n,)].

        For an objective with a fixed direction those elsewhere are the same up to one factor a pair, so that they are
        known before any logits are.
        """
        names: list[str] = [name for name in ("logps", "kl") if name in self.arrays]
        shape = (2 * (group.pairs.stop - group.pairs.start), self.keep.shape[1])
        leaves = {n: torch.zeros(shape, dtype=self.loss.dtype, device=self.keep.device).requires_grad_() for n in names}
        masks = [] if self.masks is None else [group.of(mask).detach() for mask in self.masks]
        _, total = self._evaluate(leaves, masks, group, at_reference=True)
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return self._kept(dict(zip(leaves, grads, strict=True)), group)

    def _evaluate(
        self, leaves: dict[str, Tensor], masks: list[Tensor], group: Group, at_reference: bool = False
    ) -> tuple[PairLoss, Tensor]:
        with torch.enable_grad() if self.with_gradient else torch.no_grad():
            ref_logps = self.arrays.get("ref_logps")
            if ref_logps is not None:
                ref_logps = torch.zeros_like(leaves["logps"]) if at_reference else group.of(ref_logps)
            weight = self.inputs.anchor_weight
            scores = split_pairs(
                leaves["logps"],
                None if ref_logps is None else ref_logps.detach(),
                leaves.get("kl"),
                TokenMasks(masks[0], masks[1]) if masks else None,
                group.of(self.response),
                None if weight is None else group.of(weight),
            )
            result = self.objective(scores)
            return result, (result.loss * self.inputs.weights()[group.pairs]).sum()

    def _kept(self, grads: dict[str, Tensor | None], group: Group) -> list[Tensor]:
        found = [grads.get(name) for name in ("logps", "kl")]
        zero = torch.zeros(len(group.local), dtype=self.loss.dtype, device=group.local.device)
        return [zero if gradient is None else gradient.reshape(-1)[group.local] for gradient in found]

    def pair_loss(self) -> PairLoss:
        """The objective's results of all pairs."""
        return PairLoss(self.loss, self.rewards[0], self.rewards[1])

    def weighted_loss(self) -> Tensor:
        """Σ_p weight_p · loss_p."""
        return (self.loss * self.inputs.weights()).sum()
