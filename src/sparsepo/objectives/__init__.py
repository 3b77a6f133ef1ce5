"""Per-token scores → per-pair loss: SparsePO, MaPO and the baselines, one small module each."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .base import LinkedObjective, Objective
from .dpo import DPO
from .dpop import DPOP
from .links import LINKS
from .mapo import MaPO
from .scores import PairLoss, PairScores, TokenScores
from .simpo import SimPO
from .sparsepo import SparsePO
from .tdpo1 import TDPO1
from .tdpo2 import TDPO2

OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (SparsePO, MaPO, TDPO1, TDPO2, DPO, SimPO, DPOP)}


def get_objective_class(name: str) -> type[Objective]:
    """The class behind a name; ``ValueError`` names the known ones."""
    try:
        return OBJECTIVES[name]
    except (KeyError, TypeError):
        raise ValueError(f"objective={name!r} is unknown; choose one of {', '.join(OBJECTIVES)}.") from None


def get_objective(name: str, **settings: Any) -> Objective:
    """An objective by name, with settings by their papers' names.

    Args:
        name: ``sparsepo``, ``mapo``, ``tdpo1``, ``tdpo2``, ``dpo``, ``simpo`` or ``dpop``.
        settings: ``beta`` (each objective has its own default), ``sft_weight``, ``kl_anchor``, and, where the objective
            has them, ``link``, ``label_smoothing``, ``alpha`` (tdpo2), ``gamma`` (simpo), ``lam`` (dpop),
            ``l1_reward`` and ``l1_kl`` (sparsepo).

    Raises:
        ValueError: unknown name or setting, or a value out of range.

    Example:
        >>> get_objective("tdpo2", beta=0.1, alpha=0.5).needs_kl
        True
    """
    cls = get_objective_class(name)
    known = [field.name for field in fields(cls)]
    for key in settings:
        if key not in known:
            raise ValueError(f"{key}={settings[key]!r} is no setting of objective {name!r}; it has {', '.join(known)}.")
    return cls(**{"beta": cls.default_beta, **settings})


__all__ = [
    "DPO",
    "DPOP",
    "LINKS",
    "OBJECTIVES",
    "TDPO1",
    "TDPO2",
    "LinkedObjective",
    "MaPO",
    "Objective",
    "PairLoss",
    "PairScores",
    "SimPO",
    "SparsePO",
    "TokenScores",
    "get_objective",
    "get_objective_class",
]
