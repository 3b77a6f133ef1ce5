"""DPO-Positive (Pal et al. 2024, arXiv 2402.13228, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import LinkedObjective, check_nonnegative
from .scores import TokenScores


@dataclass(frozen=True, kw_only=True)
class DPOP(LinkedObjective):
    """L = −log σ( β (R_w − R_l − λ max(0, −R_w)) ),  R = Σ_t r_t.

    The penalty keeps the chosen response's likelihood from falling; the chosen reward contains it.

    Args:
        lam: λ ≥ 0, weight of the penalty.
    """

    name: ClassVar[str] = "dpop"
    display_name: ClassVar[str] = "DPOP"
    paper: ClassVar[tuple[str, str]] = (
        "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
        "2402.13228",
    )
    links: ClassVar[tuple[str, ...]] = ("sigmoid",)
    fixed_direction: ClassVar[bool] = False  # the penalty changes the chosen side's share

    lam: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("lam", self.lam)

    def token_score(self, side: TokenScores, chosen: bool) -> Tensor:
        ratios = side.log_ratios()
        if not chosen:
            return ratios
        # R_w − λ max(0, −R_w) is (1 + λ) R_w where R_w < 0, and R_w elsewhere
        is_penalised = side.total(ratios).detach() < 0
        return ratios * (1 + self.lam * is_penalised.to(ratios.dtype))[:, None]
