"""TDPO, second version (Zeng et al. 2024, arXiv 2404.11999, eq. 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import LinkedObjective, check_nonnegative
from .scores import TokenScores


@dataclass(frozen=True, kw_only=True)
class TDPO2(LinkedObjective):
    """L = −log σ( β (u − α (K_l − sg(K_w))) ),  K = Σ_t k_t, sg = stop-gradient.

    That is S = Σ r + α K with the chosen side's K detached. Rewards are β (Σ r + α K).

    Args:
        alpha: α ≥ 0, weight of the KL difference; the paper uses 0.5.
    """

    name: ClassVar[str] = "tdpo2"
    display_name: ClassVar[str] = "TDPO (v2)"
    paper: ClassVar[tuple[str, str]] = (
        "Token-level Direct Preference Optimization",
        "2404.11999",
    )
    reads_kl: ClassVar[bool] = True

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("alpha", self.alpha)

    def token_score(self, side: TokenScores, chosen: bool) -> Tensor:
        kl = side.require_kl()
        return side.log_ratios() + self.alpha * (kl.detach() if chosen else kl)
