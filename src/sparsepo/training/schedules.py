"""Schedules of the mask apart from the policy's: hold, warm-up of sparsity and of the L1 weight, learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

Factor = Callable[[int], float]


def steps_of(value: float, total: int) -> int:
    """A length in optimiser steps: ``value`` itself, or where it is below 1 that share of all ``total`` steps."""
    return int(value) if value >= 1 else math.ceil(total * value)


@dataclass(frozen=True)
class MaskSchedule:
    """When the mask does what. Lengths are steps, or below 1 shares of the whole training.

    Args:
        hold: the mask stays at its start while the policy warms up.
        sparsity_warmup: after the hold, the target sparsity is approached over this length.
        l1_warmup: after the hold, the L1 weight rises linearly from 0 over this length.
        scheduler: name of the head's own learning rate schedule, which begins after the hold; None: the policy's schedule.
        warmup_steps: warm-up of the own schedule; None: the policy's.
    """

    hold: float = 0.0
    sparsity_warmup: float = 0.5
    l1_warmup: float = 0.0
    scheduler: str | None = None
    warmup_steps: float | None = None

    @property
    def changes_rates(self) -> bool:
        """Whether the head's learning rate differs from the policy's in its course."""
        return self.hold > 0 or self.has_own_rates

    @property
    def has_own_rates(self) -> bool:
        """Whether the head has a schedule of its own."""
        return self.scheduler is not None or self.warmup_steps is not None

    def is_held(self, step: int, total: int) -> bool:
        """Whether the mask stays as it is in this step (0 is the first)."""
        return step < steps_of(self.hold, total)

    def sparsity_progress(self, step: int, total: int) -> float:
        """How much of the sparsity's warm-up is over once ``step`` steps are done, [0, 1]."""
        return self._passed(step, self.sparsity_warmup, total)

    def l1_factor(self, step: int, total: int) -> float:
        """What multiplies the L1 weight in the step after ``step`` others, [0, 1]."""
        return self._passed(step, self.l1_warmup, total)

    def _passed(self, step: int, length: float, total: int) -> float:
        since, steps = step - steps_of(self.hold, total), steps_of(length, total)
        return min(max(since / steps, 0.0), 1.0) if steps else float(since >= 0)

    def check_fits(self, total: int, has_target: bool) -> None:
        """Raise ``ValueError`` where the target would not be reached before training ends."""
        held, rising = steps_of(self.hold, total), steps_of(self.sparsity_warmup, total) if has_target else 0
        if held + rising >= total and (held or rising):
            lengths = f"mask_hold_steps={self.hold!r}" + (
                f" and mask_sparsity_warmup={self.sparsity_warmup!r}" if has_target else ""
            )
            raise ValueError(
                f"{lengths} last {held + rising} of {total} steps: the mask would not get to its end. Make them shorter."
            )


def schedule_mask_groups(
    scheduler: Any,
    optimizer: torch.optim.Optimizer,
    own_groups: list[int],
    schedule: MaskSchedule,
    args: Any,
    total: int,
) -> LambdaLR:
    """The policy's schedule with other factors for the mask head's groups.

    Args:
        scheduler: what Trainer made for all groups.
        optimizer: its optimizer.
        own_groups: indices of the mask head's groups.
        schedule: the mask's.
        args: the run's settings.
        total: optimiser steps of the run.

    Raises:
        ValueError: the policy's schedule is none of factors by step (``reduce_lr_on_plateau``).
    """
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"lr_scheduler_type={args.lr_scheduler_type!r} is no function of the step; with it leave mask_hold_steps, "
            "mask_lr_scheduler_type and mask_warmup_steps unset."
        )
    factors: list[Factor] = list(scheduler.lr_lambdas)
    held = steps_of(schedule.hold, total)
    own = _own_factor(schedule, args, total - held) if schedule.has_own_rates else None
    for index in own_groups:
        factors[index] = _after(held, factors[index], own)
    return LambdaLR(optimizer, factors)


def _after(held: int, policy: Factor, own: Factor | None) -> Factor:
    """0 while held, then the own schedule from its beginning or the policy's where it stands."""

    def factor(step: int) -> float:
        if step < held:
            return 0.0
        return policy(step) if own is None else own(step - held)

    return factor


def _own_factor(schedule: MaskSchedule, args: Any, total: int) -> Factor:
    name = schedule.scheduler or args.lr_scheduler_type
    warmup = args.warmup_steps if schedule.warmup_steps is None else schedule.warmup_steps
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    own = get_scheduler(
        name,
        optimizer=stand_in,
        num_warmup_steps=steps_of(warmup, total),
        num_training_steps=total,
        # further settings belong to the policy's schedule
        scheduler_specific_kwargs=args.lr_scheduler_kwargs if name == args.lr_scheduler_type else None,
    )
    if not isinstance(own, LambdaLR):
        raise ValueError(f"mask_lr_scheduler_type={name!r} is no function of the step; choose another.")
    factor: Factor = own.lr_lambdas[0]
    return factor
