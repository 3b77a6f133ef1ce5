"""Preference links: how a pair's margin becomes a loss.

The names are those of TRL's ``loss_type``. ``S_w`` and ``S_l`` are the scores of the chosen and the rejected side in
units of log-probability (before β), |y| the number of response tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

LINKS = ("sigmoid", "hinge", "ipo", "robust")


def sigmoid_link(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(z) − ε log σ(−z), conservative DPO (Mitchell 2023); ε = 0 is the Bradley–Terry loss of DPO eq. 7."""
    loss = -F.logsigmoid(margin)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-margin)
    return loss


def hinge_link(margin: Tensor) -> Tensor:
    """max(0, 1 − z), SLiC (arXiv 2305.10425)."""
    return F.relu(1 - margin)


def robust_link(margin: Tensor, label_smoothing: float) -> Tensor:
    """[−(1−ε) log σ(z) + ε log σ(−z)] / (1 − 2ε), unbiased under labels flipped with probability ε (arXiv 2403.00409)."""
    clean, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_link(mean_chosen: Tensor, mean_rejected: Tensor, beta: float) -> Tensor:
    """(S_w/|y_w| − S_l/|y_l| − 1/(2β))², IPO eq. 17 (arXiv 2310.12036), averaged per token as TRL does."""
    return (mean_chosen - mean_rejected - 1 / (2 * beta)) ** 2


def preference_link(
    name: str, beta: float, label_smoothing: float
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A function of (S_w, S_l, |y_w|, |y_l|), each (B,), giving the loss of each pair (B,)."""

    def link(chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor) -> Tensor:
        if name == "ipo":
            # an empty response has score 0: the clamp only avoids 0/0
            return ipo_link(chosen / chosen_length.clamp(min=1), rejected / rejected_length.clamp(min=1), beta)
        margin = beta * (chosen - rejected)
        if name == "hinge":
            return hinge_link(margin)
        if name == "robust":
            return robust_link(margin, label_smoothing)
        return sigmoid_link(margin, label_smoothing)

    if name not in LINKS:
        raise ValueError(f"link={name!r} is unknown; choose one of {', '.join(LINKS)}.")
    return link
