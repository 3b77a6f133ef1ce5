"""Disk that a reference cache takes: what training/caching keeps of a token, times the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .needs import needs_of
from .settings import PlanSettings
from .shapes import ModelShape


@dataclass(frozen=True)
class DiskPlan:
    """Bytes of a reference cache.

    Args:
        token: of a response token, by what is kept.
        tokens: response tokens of the data set.
        head: of the copy of the reference's head, 0 where none is kept.
    """

    token: dict[str, int]
    tokens: int
    head: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.token.values()) * self.tokens + self.head


def plan_disk(shape: ModelShape, settings: PlanSettings) -> DiskPlan:
    """The cache of a run with ``precompute_ref``, whether it is on or not."""
    from sparsepo.training.caching.plan import EXPECTATION, HIDDEN, NO_KL, CachePlan, HeadForm

    needs = needs_of(settings)
    itemsize = 2 if settings.weight_dtype == "bfloat16" else 4
    capped = getattr(shape.config.get_text_config(), "final_logit_softcapping", None) is not None
    head = HeadForm(settings.lora, capped, shape.hidden_size, shape.head * itemsize, itemsize)
    kl = NO_KL
    if needs.kl:
        kl = EXPECTATION if settings.lora and not capped else HIDDEN
    layers = 0
    if needs.states:
        layers = 1 if settings.mask_layers == "last" else shape.layers
    plan = CachePlan(
        kl, head, layers, shape.config.get_text_config().hidden_size, masks=("mask",) * (settings.mask == "activation")
    )
    tokens = 2 * settings.pairs * settings.response_tokens
    return DiskPlan(plan.token_bytes(), tokens, head.nbytes if plan.needs_head else 0)
