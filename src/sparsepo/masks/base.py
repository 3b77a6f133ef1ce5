"""What every kind of mask shares: what it is given, what it returns, what it declares.

A masker maps what the frozen reference model knows about a batch to two non-negative weights a token: the reward mask
m_u (how much the log-ratio counts) and the divergence mask m_d (how much the KL counts). See arXiv 2410.05102.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

MASK_ON = ("both", "reward", "kl")
POSITIONS = ("predicting", "token")


@dataclass
class TokenMasks:
    """Reward mask m_u and KL mask m_d of each target token, float32 ≥ 0, (B, T) each, zero outside responses.

    ``reward_size`` and ``kl_size`` are what an L1 weight counts instead of the masks, where a gate says so (expected L0
    norm), (B, T) each; else None. ``values`` are the heads' numbers before offset, scale and gate by head name, (B, T)
    each, where the masker was asked for them (:attr:`LearnedMask.shows_values`).
    """

    reward: Tensor
    kl: Tensor
    reward_size: Tensor | None = None
    kl_size: Tensor | None = None
    values: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class NoiseKey:
    """Identifies every token of a batch for counter-based noise, so that noise depends on the token and not on how
    rows are batched, padded, or spread over processes.

    Args:
        seed: the run's seed.
        step: optimiser step (0 outside training).
        row: an identity for each sequence, int64, (B,); the two sides of a pair differ.
        position: index of the target token in its unpadded sequence, int64, (B, T).
    """

    seed: int
    step: int
    row: Tensor
    position: Tensor

    def uniform(self, stream: int) -> Tensor:
        """Numbers in [0, 1) that depend on (seed, step, row, position, stream) alone, float32, (B, T)."""
        from .noise import counter_uniform

        return counter_uniform(self.seed, self.step, self.row, self.position, stream)

    def at_step(self, step: int) -> NoiseKey:
        """The same tokens at another step."""
        return NoiseKey(self.seed, step, self.row, self.position)


@dataclass
class MaskInputs:
    """All that a masker may read about B sequences whose target tokens are T = sequence length − 1.

    Args:
        response_mask: true at response tokens, bool, (B, T).
        hidden_states: outputs of the reference's L blocks for the WHOLE sequence, each (B, T + 1, H), the last one after
            the final norm; present if the masker ``needs_hidden_states``. Column p is position p: target t is
            predicted at column t and read at column t + 1.
        activations: feature means by group, each a list of (B, T + 1), from :meth:`Masker.tap`.
        weights: weights given with the data, (B, T).
        noise: identity of the tokens for counter-based noise; None: the global random generator is used.
    """

    response_mask: Tensor
    hidden_states: Sequence[Tensor] | None = None
    activations: dict[str, list[Tensor]] | None = None
    weights: Tensor | None = None
    noise: NoiseKey | None = None


class Masker(nn.Module):
    """Base class of all kinds of masks.

    Args:
        mask_on: ``both`` (default), ``reward`` (m_d = 1) or ``kl`` (m_u = 1).
        position: ``predicting`` (the paper's): the mask of token t is read at position t−1, so it does not see the
            token; ``token``: at position t.

    A subclass sets ``kind`` and what it needs, writes :meth:`raw_masks`, and lists what rebuilds it in
    :meth:`settings`.
    """

    kind: ClassVar[str]
    needs_hidden_states: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    # Whether a mask at zero has zero gradient too, so that a scorer may leave the token out of the computation.
    flat_at_zero: bool = True
    # Settings that files written before they existed lack; the constructor's defaults are what those files mean.
    later_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, mask_on: str = "both", position: str = "predicting") -> None:
        super().__init__()
        if mask_on not in MASK_ON:
            raise ValueError(f"mask_on={mask_on!r} is unknown; choose one of {', '.join(MASK_ON)}.")
        if position not in POSITIONS:
            raise ValueError(f"position={position!r} is unknown; choose one of {', '.join(POSITIONS)}.")
        self.mask_on = mask_on
        self.position = position

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        """(m_u, m_d) before ``mask_on`` and the response mask are applied, (B, T) each."""
        raise NotImplementedError

    def token_masks(self, inputs: MaskInputs) -> TokenMasks:
        """The masks of a batch: what trainer and scorers call."""
        reward, kl = self.raw_masks(inputs)
        ones = torch.ones_like(inputs.response_mask, dtype=torch.float32)
        if self.mask_on == "reward":
            kl = ones
        elif self.mask_on == "kl":
            reward = ones
        zero = torch.zeros_like(ones)
        response = inputs.response_mask
        return TokenMasks(torch.where(response, reward, zero), torch.where(response, kl, zero))

    @contextmanager
    def tap(self, model: nn.Module) -> Iterator[dict[str, list[Tensor]] | None]:
        """Context around the reference's forward; yields what :class:`MaskInputs` wants as ``activations``."""
        yield None

    def check_fits(self, model: nn.Module) -> None:
        """Raise ``ValueError`` naming the sizes if this masker cannot read ``model`` (a Hugging Face causal LM)."""

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this masker, JSON types only."""
        return {"mask_on": self.mask_on, "position": self.position}

    def save(self, folder: str | os.PathLike[str], base_model: str | None = None) -> Path:
        """Write ``folder/mask/``; see :func:`sparsepo.masks.save_mask`."""
        from .saving import save_mask

        return save_mask(self, folder, base_model=base_model)

    @property
    def is_trainable(self) -> bool:
        """Whether the masker has parameters that require a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def at_targets(self, values: Tensor) -> Tensor:
        """Pick the reading position: (..., T + 1) of the whole sequence → (..., T) of the targets, on the last axis."""
        return values[..., :-1] if self.position == "predicting" else values[..., 1:]
