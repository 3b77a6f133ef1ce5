"""What a run computes, from its objective and mask."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsepo.objectives import get_objective_class

from .settings import PlanSettings

# How the learned mask's default head looks (training/settings.py): a hidden layer with GELU
MASK_MAP = "mlp"


@dataclass
class Needs:
    """What a run computes.

    Args:
        reference, kl, states: whether the reference, the KL and the states of all blocks are read.
        loads_reference: whether a model of its own is in memory.
        direction: the objective's ``has_fixed_direction``.
    """

    reference: bool
    kl: bool
    states: bool
    loads_reference: bool
    direction: bool = field(default=False)


def needs_of(settings: PlanSettings) -> Needs:
    """From objective and mask; as the trainer's defaults, a learned mask has a KL anchor."""
    kind = get_objective_class(settings.objective)
    anchor = 0.1 if settings.mask == "learned" and kind.reads_masks else 0.0
    arguments = {"beta": kind.default_beta, "kl_anchor": anchor}
    objective = kind(**arguments)
    runs = objective.needs_reference and not settings.precompute_ref
    return Needs(
        reference=objective.needs_reference,
        kl=objective.needs_kl,
        states=settings.mask == "learned" and kind.reads_masks,
        loads_reference=runs and not settings.lora,
        direction=objective.has_fixed_direction,
    )
