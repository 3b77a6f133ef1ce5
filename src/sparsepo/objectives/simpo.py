"""SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Objective, check_nonnegative
from .links import sigmoid_link
from .scores import PairLoss, PairScores, TokenScores


@dataclass(frozen=True, kw_only=True)
class SimPO(Objective):
    """L = −log σ( β/|y_w| Σ log π(y_w) − β/|y_l| Σ log π(y_l) − γ ). No reference. Rewards β · mean log π, γ apart.

    Args:
        gamma: γ ≥ 0, target margin, in units of the reward (after β).
    """

    name: ClassVar[str] = "simpo"
    display_name: ClassVar[str] = "SimPO"
    paper: ClassVar[tuple[str, str]] = (
        "SimPO: Simple Preference Optimization with a Reference-Free Reward",
        "2405.14734",
    )
    default_beta: ClassVar[float] = 2.0
    reads_reference: ClassVar[bool] = False

    gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("gamma", self.gamma)

    def token_rewards(self, side: TokenScores, chosen: bool) -> Tensor:
        """β/|y| log π(y_t), (B, T)."""
        return self.beta * side.policy_logps / side.lengths().clamp(min=1)[:, None]

    def sides(self, scores: PairScores) -> PairLoss:
        sides = ((scores.chosen, True), (scores.rejected, False))
        chosen, rejected = (side.total(self.token_rewards(side, is_chosen)) for side, is_chosen in sides)
        return PairLoss(sigmoid_link(chosen - rejected - self.gamma), chosen, rejected)
