"""SparsePO (Christopoulou et al. 2024, arXiv 2410.05102)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import LinkedObjective, check_nonnegative
from .scores import PairLoss, PairScores, TokenScores


@dataclass(frozen=True, kw_only=True)
class SparsePO(LinkedObjective):
    """L = −log σ( β (u − δ) ) [+ L1]

    u = Σ_{y_w} m_u r − Σ_{y_l} m_u r,  δ = Σ_{y_l} m_d k − Σ_{y_w} m_d k, so S = Σ_t (m_u,t r_t + m_d,t k_t).
    Gradient flows through π_θ and through the masks. With m_u = m_d = 1 it is TDPO1; with m_u = 1, m_d = 0, DPO.

    Args:
        l1_reward: λ_u ≥ 0: λ_u Σ_t m_u,t over both responses is added to the pair's loss.
        l1_kl: λ_d ≥ 0, the same for m_d. (For a mask that serves as both, the official code halves the two λ; the
            trainer does so, this function takes effective values.)
    """

    name: ClassVar[str] = "sparsepo"
    display_name: ClassVar[str] = "SparsePO"
    paper: ClassVar[tuple[str, str]] = (
        "SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks",
        "2410.05102",
    )
    reads_kl: ClassVar[bool] = True
    reads_masks: ClassVar[bool] = True

    l1_reward: float = 0.0
    l1_kl: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("l1_reward", self.l1_reward)
        check_nonnegative("l1_kl", self.l1_kl)

    def token_score(self, side: TokenScores, chosen: bool) -> Tensor:
        ratios, kl = side.log_ratios(), side.require_kl()
        if side.reward_mask is not None:
            ratios = ratios * side.reward_mask
        return ratios + (kl if side.kl_mask is None else kl * side.kl_mask)

    def sides(self, scores: PairScores) -> PairLoss:
        result = super().sides(scores)
        for weight, attribute in ((self.l1_reward, "reward_mask"), (self.l1_kl, "kl_mask")):
            if weight:
                norm = sum(l1_norm(side, getattr(side, attribute)) for side in (scores.chosen, scores.rejected))
                result.loss = result.loss + weight * norm
        return result


def l1_norm(side: TokenScores, mask: Tensor | None) -> Tensor:
    """‖m‖₁ over the response tokens of one side, (B,)."""
    return side.total(torch.ones_like(side.policy_logps) if mask is None else mask.abs())
