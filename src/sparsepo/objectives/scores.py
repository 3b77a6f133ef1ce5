"""The tensors that objectives read and return.

Every array of per-token values is aligned with the *target* tokens: column ``t`` belongs to the token at position
``t + 1`` of the input, whose log-probability the model gives at position ``t``. Only response tokens count; where
``response_mask`` is false a value is arbitrary and never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TokenScores:
    """Per-token scores of one side (chosen or rejected) of a batch of B pairs.

    Args:
        policy_logps: log π_θ(y_t | x, y_<t), nats, (B, T).
        ref_logps: log π_ref of the same tokens, (B, T); ``None`` where the objective needs no reference.
        kl: KL(π_ref ‖ π_θ) at each token over the whole vocabulary, ≥ 0, nats, (B, T); ``None`` where not needed.
        reward_mask: m_u ≥ 0, how much the token's log-ratio counts, (B, T); ``None`` means ones.
        kl_mask: m_d ≥ 0, how much the token's KL counts, (B, T); ``None`` means ones.
        response_mask: true at response tokens, bool, (B, T).
        anchor_weight: weight of each token in the KL anchor, (B, T); ``None`` means one for every response token
            (the anchor is computed exactly). A scorer that samples tokens puts the inverse of their probability here.
    """

    policy_logps: Tensor
    ref_logps: Tensor | None
    kl: Tensor | None
    reward_mask: Tensor | None
    kl_mask: Tensor | None
    response_mask: Tensor
    anchor_weight: Tensor | None = None

    def lengths(self) -> Tensor:
        """Number of response tokens, float, (B,)."""
        return self.response_mask.sum(-1).to(self.policy_logps.dtype)

    def total(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Σ_t weight_t · values_t over response tokens, (B,). ``weight=None`` means ones."""
        product = values if weight is None else values * weight
        # where, not a product: padding may hold inf or nan, whose product with 0 is nan
        return torch.where(self.response_mask, product, torch.zeros_like(product)).sum(-1)

    def log_ratios(self) -> Tensor:
        """r_t = log π_θ − log π_ref, (B, T)."""
        if self.ref_logps is None:
            raise ValueError("These TokenScores hold no reference log-probabilities (ref_logps is None).")
        return self.policy_logps - self.ref_logps

    def require_kl(self) -> Tensor:
        """The per-token KL, (B, T); an error where it was not computed."""
        if self.kl is None:
            raise ValueError("These TokenScores hold no KL (kl is None); the objective or the KL anchor needs it.")
        return self.kl


@dataclass
class PairScores:
    """Scores of B pairs: the chosen and the rejected side."""

    chosen: TokenScores
    rejected: TokenScores


@dataclass
class PairLoss:
    """What an objective returns, un-reduced.

    Args:
        loss: loss of each pair, (B,), differentiable.
        chosen_rewards: implicit reward of the chosen response as the loss uses it, (B,), detached.
        rejected_rewards: the same for the rejected response, (B,), detached.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
