"""Masks that read no model: ones, fixed random numbers, weights that come with the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Masker, MaskInputs, NoiseKey
from .validation import check_choice, check_fraction, check_int

_RANDOM_STREAM = 100  # noise streams: 100, 101 the values of m_u, m_d; 102, 103 what is zeroed


class DenseMask(Masker):
    """m_u = m_d = 1: SparsePO's loss is then TDPO1's."""

    kind = "dense"

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        """Ones, (B, T)."""
        ones = torch.ones_like(inputs.response_mask, dtype=torch.float32)
        return ones, ones


class RandomMask(Masker):
    """Uniform masks in [0, 1), fixed for ever per token of a dataset row: a control for what masks learn.

    The official ``random`` masks are drawn anew at every step; these are not, so that evaluation, resuming and any
    batching see the same masks.

    Args:
        seed: selects the numbers, together with the row and position of the token; the run's seed and step do not.
        sparsity: probability of an exact zero.
        sharing: ``common`` (m_u = m_d) or ``independent``.
        mask_on: ``both``, ``reward`` or ``kl``.
        position: kept for uniformity; nothing is read.
    """

    kind = "random"

    def __init__(
        self,
        seed: int = 0,
        sparsity: float = 0.0,
        sharing: str = "common",
        mask_on: str = "both",
        position: str = "predicting",
    ) -> None:
        super().__init__(mask_on, position)
        check_int("seed", seed)
        check_fraction("sparsity", sparsity)
        check_choice("sharing", sharing, ("common", "independent"))
        self.seed, self.sparsity, self.sharing = seed, float(sparsity), sharing

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        """Fixed random numbers, (B, T) each."""
        if inputs.noise is None:
            raise ValueError(
                "A random mask needs MaskInputs.noise, which identifies the tokens: masks are fixed per token."
            )
        noise = NoiseKey(self.seed, 0, inputs.noise.row, inputs.noise.position)
        reward = self._draw(noise, 0)
        return reward, reward if self.sharing == "common" else self._draw(noise, 1)

    def _draw(self, noise: NoiseKey, which: int) -> Tensor:
        values = noise.uniform(_RANDOM_STREAM + which)
        if self.sparsity == 0:
            return values
        return values * (noise.uniform(_RANDOM_STREAM + 2 + which) >= self.sparsity)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this mask."""
        return {"seed": self.seed, "sparsity": self.sparsity, "sharing": self.sharing, **super().settings()}


class DataMask(Masker):
    """m_u = m_d = the weights that the dataset gives to each response token, finite and ≥ 0."""

    kind = "data"
    needs_weights = True

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        """The weights, (B, T). Raises ``ValueError`` naming the first bad one."""
        if inputs.weights is None:
            raise ValueError(
                "A data mask needs weights, but the batch has none: give the dataset chosen_weights and rejected_weights."
            )
        weights = inputs.weights.to(torch.float32)
        if weights.shape != inputs.response_mask.shape:
            raise ValueError(
                f"weights have shape {tuple(weights.shape)}, the response tokens {tuple(inputs.response_mask.shape)}."
            )
        bad = inputs.response_mask & ~(torch.isfinite(weights) & (weights >= 0))
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"Weight {weights[row, column].item()} of row {row}, token {column} of the batch: weights must be finite "
                "and at least 0."
            )
        return weights, weights
