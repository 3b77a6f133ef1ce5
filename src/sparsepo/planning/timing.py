"""How long a step takes: a stated model of three rates, which were fitted to measured steps.

    step = micro-batches · Σ_phases max(F / (u · peak) + B / (v · bandwidth), K · launch) + optimiser bytes / (v · bandwidth)

F floating-point operations of products and attention, B bytes that all other operations move, K kernels, each counted by
following the step (:mod:`sparsepo.planning.fake_step`). u and v are shares of a device's public rates; they differ from
model to model, so that a plan is within some tens of percent, not exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from .devices import Device
from .fake_step import PHASES, StepRecord
from .settings import PlanSettings
from .shapes import ModelShape

# Fitted to the 28 runs of benchmarks/results/plan_check.json (H200): 13 % off on average, -20 to +33 % at most
PRODUCTS = 0.60  # u
TRAFFIC = 0.60  # v
LAUNCH = 38e-6  # seconds a kernel, where a step is bound by launching them
_ROW_BYTES = 26  # that the scorer's kernels move for a logit of policy and reference (gpu_rows.md)
_OTHER_PRODUCTS = 0.5  # of u: float32 products go through TF32 at about half the rate of bfloat16's
# Bytes moved for a trained number by AdamW and the norm for clipping
_OPTIMIZER_TRAFFIC = {"float32": 36.0, "bfloat16": 20.0}


@dataclass(frozen=True)
class TimePlan:
    """Seconds.

    Args:
        phases: of a micro-batch, by phase.
        optimizer: of the optimiser's step.
        communication: of moving weights and gradients between devices; where it is less than the computation it is hidden.
        step: of an optimiser step.
        steps: optimiser steps of the run.
        filling: of filling the reference cache before training.
        flops: floating-point operations of an optimiser step on one device.
        utilisation: share of the device's peak that this is.
    """

    phases: dict[str, float]
    optimizer: float
    communication: float
    step: float
    steps: int
    filling: float
    flops: float
    utilisation: float

    @property
    def total(self) -> float:
        """Of the run."""
        return self.step * self.steps + self.filling


def plan_time(
    shape: ModelShape, settings: PlanSettings, record: StepRecord, device: Device, utilisation: float | None = None
) -> TimePlan:
    """The time of a run.

    Args:
        shape: the model.
        settings: the run.
        record: a micro-batch of average rows.
        device: its public rates.
        utilisation: u; None: the fitted one.
    """
    share = (PRODUCTS if utilisation is None else utilisation) * (1.0 if settings.autocast else _OTHER_PRODUCTS)
    phases = _phases(record, shape, share * device.bf16_flops, TRAFFIC * device.bandwidth)
    moved = _OPTIMIZER_TRAFFIC[settings.weight_dtype if not settings.lora else "float32"] * record.trainable
    shared = settings.devices if settings.sharding not in ("none", "ddp") else 1
    optimizer = moved / shared / (TRAFFIC * device.bandwidth)
    communication = _communication(shape, settings, record) / device.link
    computed = settings.accumulation * sum(phases.values())
    step = max(computed, communication) + optimizer
    flops = settings.accumulation * float(sum(record.flops.values()))
    pairs_a_step = settings.batch_size * settings.accumulation * settings.devices
    steps = max(1, round(settings.epochs * settings.pairs / pairs_a_step))
    filling = _filling(settings, phases, record) if settings.precompute_ref else 0.0
    return TimePlan(phases, optimizer, communication, step, steps, filling, flops, flops / step / device.bf16_flops)


def _phases(record: StepRecord, shape: ModelShape, flops: float, bandwidth: float) -> dict[str, float]:
    """Seconds of each phase of a micro-batch; the scorer's products and rows in ``scoring``."""
    work, moved = dict(record.flops), dict(record.traffic)
    work["scoring"] = work.get("scoring", 0) + work.pop("head", 0)
    moved["scoring"] = moved.get("scoring", 0) + _ROW_BYTES * record.rows * shape.vocabulary
    found = {}
    for name in PHASES:
        computed = work.get(name, 0) / flops + moved.get(name, 0) / bandwidth
        found[name] = max(computed, record.operations.get(name, 0) * LAUNCH)
    return found


def _communication(shape: ModelShape, settings: PlanSettings, record: StepRecord) -> float:
    """Bytes that each device sends in an optimiser step."""
    n = settings.devices
    if settings.sharding == "none" or n == 1:
        return 0.0
    part = (n - 1) / n
    gradients = float(record.trainable_bytes)
    if settings.sharding in ("ddp", "zero2"):
        return 2 * part * gradients  # zero2: scattered once, and the new weights gathered
    half = 2.0 * shape.parameters
    passes = 2 + (1 if record.reference or settings.lora else 0)  # policy forward and backward, reference
    return part * settings.accumulation * (passes * half + gradients / 2)


def _filling(settings: PlanSettings, phases: dict[str, float], record: StepRecord) -> float:
    """One forward of the reference over all rows: as long as the policy's."""
    batches = settings.pairs / settings.batch_size / settings.devices
    return batches * (phases["policy"] + phases["scoring"] / 3)
