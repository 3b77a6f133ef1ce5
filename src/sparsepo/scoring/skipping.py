"""Which response tokens a step must score: those that a mask keeps, those that the objective declares, and a random share of
the rest where a KL anchor reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsepo.masks.base import NoiseKey, TokenMasks

_ANCHOR_STREAM = 300  # noise stream of the anchor's sample


def tokens_that_count(
    masks: TokenMasks | None, response_mask: Tensor, declared: str, flat_at_zero: bool
) -> Tensor | None:
    """The response tokens that add to a masked objective (its anchor apart) or to any gradient; None means all of them.

    Args:
        masks: token masks, or None for ones.
        response_mask: bool, (R, T).
        declared: tokens that count whatever their masks, from ``Objective.declared_tokens``: none, chosen or all.
        flat_at_zero: whether a mask at zero has zero gradient too (ReLU): only then may its token be left out.
    """
    if masks is None or declared == "all" or not flat_at_zero:
        return None
    kept = (masks.reward != 0) | (masks.kl != 0)
    if declared == "chosen":
        pairs = len(kept) // 2
        kept = torch.cat([torch.ones_like(kept[:pairs]), kept[pairs:]])
    return kept & response_mask


def anchor_sample(kept: Tensor, response_mask: Tensor, noise: NoiseKey, share: float) -> tuple[Tensor, Tensor]:
    """Tokens to score and their weights in the KL anchor, where it reads all kept tokens and a random share of the others.

    Every other token is drawn with probability ``share``, independently, and weighs 1/share, so that the expectation over
    draws of Σ_t w_t k_t is Σ_t k_t, and so for every gradient. Its variance is (1 − share)/share · Σ k_t² over the others.

    Args:
        kept: tokens that count anyway, bool, (R, T).
        response_mask: bool, (R, T).
        noise: identity of the tokens and the step: draws depend on nothing else.
        share: in (0, 1].

    Returns:
        tokens to score, bool (R, T), and ``anchor_weight``, float32 (R, T).
    """
    drawn = response_mask & ~kept & (noise.uniform(_ANCHOR_STREAM).to(kept.device) < share)
    return kept | drawn, kept.float() + drawn.float() / share
