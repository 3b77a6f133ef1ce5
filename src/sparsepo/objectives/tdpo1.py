"""TDPO, first version (Zeng et al. 2024, arXiv 2404.11999, eq. 16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import LinkedObjective
from .scores import TokenScores


@dataclass(frozen=True, kw_only=True)
class TDPO1(LinkedObjective):
    """L = −log σ( β (u − δ) ),  u = Σ_{y_w} r − Σ_{y_l} r,  δ = Σ_{y_l} k − Σ_{y_w} k.

    That is −log σ( β (S_w − S_l) ) with S = Σ_t (r_t + k_t), k_t = KL(π_ref‖π_θ). Gradient flows through k.
    """

    name: ClassVar[str] = "tdpo1"
    display_name: ClassVar[str] = "TDPO (v1)"
    paper: ClassVar[tuple[str, str]] = (
        "Token-level Direct Preference Optimization",
        "2404.11999",
    )
    reads_kl: ClassVar[bool] = True

    def token_score(self, side: TokenScores, chosen: bool) -> Tensor:
        return side.log_ratios() + side.require_kl()
