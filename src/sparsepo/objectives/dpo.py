"""DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import LinkedObjective
from .scores import TokenScores


@dataclass(frozen=True, kw_only=True)
class DPO(LinkedObjective):
    """L = −log σ( β Σ_{y_w} r_t − β Σ_{y_l} r_t ),  r_t = log π_θ − log π_ref. Masks and KL are not read."""

    name: ClassVar[str] = "dpo"
    display_name: ClassVar[str] = "DPO"
    paper: ClassVar[tuple[str, str]] = (
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "2305.18290",
    )

    def token_score(self, side: TokenScores, chosen: bool) -> Tensor:
        return side.log_ratios()
