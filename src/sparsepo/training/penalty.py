"""The L1 weight of masks that have a size of their own to count: the expected L0 norm of hard-concrete gates."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives import Objective, SparsePO
from sparsepo.scoring import ScorerOutput


def without_l1(objective: Objective) -> Objective:
    """The objective without the L1 norm of the masks."""
    return replace(objective, l1_reward=0.0, l1_kl=0.0) if isinstance(objective, SparsePO) else objective


def add_size_penalty(scored: ScorerOutput, masks: TokenMasks, objective: Objective, weight: Tensor) -> None:
    """Add λ_u Σ_t size_u,t + λ_d Σ_t size_d,t of both responses to each pair's loss, in place.

    Args:
        scored: scores of P pairs by the objective without its L1 norm.
        masks: of the 2P responses, chosen first.
        objective: holds the two λ.
        weight: weight of each pair in the loss, (P,).
    """
    if not isinstance(objective, SparsePO):
        return
    for factor, size in ((objective.l1_reward, masks.reward_size), (objective.l1_kl, masks.kl_size)):
        if factor and size is not None:
            of_pair = factor * size.sum(-1).view(2, -1).sum(0)
            scored.pair_loss.loss = scored.pair_loss.loss + of_pair.detach()
            scored.loss = scored.loss + (of_pair * weight).sum()
