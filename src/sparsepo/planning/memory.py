"""Memory of one device, part by part: the step's own record, the shares of a sharded run, and what is there anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .fake_step import StepRecord, record_step
from .settings import OPTIMIZERS, PlanSettings
from .shapes import ModelShape

MIB = 1 << 20
# Measured on an H200 (benchmarks/results/plan_check.md): CUDA's context and kernels, and cuBLAS's workspaces
CONTEXT = 775 * MIB
WORKSPACE = 66 * MIB
# Share of a device's memory that a plan may fill: the allocator's blocks are not filled to the last byte
USABLE = 0.92
# DeepSpeed's defaults: numbers in a bucket of gradients, and in what is gathered ahead
ZERO_BUCKET = 500_000_000
ZERO_PREFETCH = 50_000_000
PARTS = {
    "weights": "weights of the policy",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "reference": "weights of the reference",
    "states": "what the reference or its cache leaves (states that the mask reads)",
    "activations": "activations of the policy, with casts of weights",
    "head": "head of the fused scorer: rows of logits, gradient",
    "mask": "mask head",
    "batch": "batch",
    "sharding": "gathered layers and buckets",
    "workspace": "cuBLAS workspaces",
    "context": "CUDA context",
}


_followed: dict[tuple[Any, ...], tuple[ModelShape, StepRecord]] = {}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device when they are most.

    Args:
        parts: part → bytes, of :data:`PARTS`.
        when: the phase of the step.
        record: the step that was followed.
    """

    parts: dict[str, float]
    when: str
    record: StepRecord

    @property
    def allocated(self) -> float:
        """What PyTorch's allocator holds."""
        return self.total - self.parts["context"]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    def fits(self, memory: float) -> bool:
        """Whether a device of so many bytes can be expected to hold it."""
        return self.total <= USABLE * memory


def plan_memory(
    shape: ModelShape, settings: PlanSettings, device_bytes: float, on_gpu: bool = True, tokens: int | None = None
) -> MemoryPlan:
    """The memory of a run on each device.

    Args:
        shape: the model.
        settings: the run.
        device_bytes: memory of the device, of which the scorer's budget is a share.
        on_gpu: a GPU's kernels.
        tokens: width of the batch; None: ``max_length``, the widest that can come.
    """
    width = settings.max_length if tokens is None else tokens
    # the widest batch: the longest responses that leave the average prompt its room
    response = max(1, min(width - 1, width - round(settings.prompt_tokens * width / settings.max_length)))
    local = _as_computed(settings)
    factors = _shares(settings)
    key = (id(shape), settings, width, device_bytes, on_gpu)
    if key not in _followed:  # advice asks for some runs twice
        _followed[key] = (shape, record_step(shape, local, width, response, factors, device_bytes, on_gpu))
    record = _followed[key][1]
    parts = {name: size * factors.get(name, 1.0) for name, size in record.peak.items()}
    parts |= _sharded_states(shape, settings, record)
    parts["workspace"] = WORKSPACE if on_gpu else 0
    parts["context"] = CONTEXT if on_gpu else 0
    return MemoryPlan({name: parts.get(name, 0.0) for name in PARTS}, record.peak_phase, record)


def _as_computed(settings: PlanSettings) -> PlanSettings:
    """The settings of the local computation: sharded runs gather their layers in half precision, and DeepSpeed keeps
    half-precision weights beside a float32 copy in its optimiser."""
    gathers_half = settings.sharding in ("fsdp2", "zero2", "zero3") and settings.precision == "mixed"
    return settings.changed(precision="bf16") if gathers_half else settings


def _shares(settings: PlanSettings) -> dict[str, float]:
    """Factors on parts whose bytes are counted by the step itself; 0: :func:`_sharded_states` gives them."""
    if settings.sharding in ("none", "ddp"):
        return {}
    zero = {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0, "reference": 0.0}
    if settings.sharding == "zero2":
        del zero["weights"], zero["reference"]  # whole on every device
    return zero


def _sharded_states(shape: ModelShape, settings: PlanSettings, record: StepRecord) -> dict[str, float]:
    """Weights, gradients, optimiser states and reference on one of n devices, and what gathering takes."""
    n, kind = settings.devices, settings.sharding
    trained, all_numbers = record.trainable, shape.parameters + (record.trainable if settings.lora else 0)
    if kind == "none":
        return {}
    if kind == "ddp":
        return {"sharding": float(record.trainable_bytes)}  # buckets of gradients
    wide = 4 if settings.precision != "bf16" else 2
    states = OPTIMIZERS[settings.optimizer]
    mask_states = 8.0 * record.mask_parameters
    if kind == "fsdp2":
        frozen = (all_numbers - trained) * (wide if not settings.lora else 2 if settings.precision == "bf16" else 4)
        width = 4 if settings.lora else wide
        block = 2.0 * shape.largest_block
        if settings.load_in_4bit:  # what is not quantised stays as wide as it is
            frozen, width, block = record.weights - record.trainable_bytes - record.scales, 2, block / 4
        models = 2 if record.reference else 1
        parts = {
            "weights": (frozen + trained * width) / n + record.scales,
            "gradients": trained * width / n,
            "optimizer": states * trained * width / n + mask_states,
            "reference": record.reference and shape.parameters * wide / n,
            # two blocks gathered ahead in half precision, their gradients before they are scattered; embeddings and head,
            # which stay whole once they are gathered; the scorer's head in the weights' own type, and in half precision
            "sharding": 2 * block
            + (0 if settings.lora else 2 * wide * shape.largest_block)
            + models * (2 * shape.embeddings + (wide + (2 if wide == 4 else 0)) * shape.head),
        }
        return {name: float(size) for name, size in parts.items()}
    master = 4 * trained
    buckets = 2 * 2 * min(ZERO_BUCKET, trained)
    parts = {
        "gradients": 2 * trained / n,
        "optimizer": (master + states * 4 * trained) / n + mask_states,
        "sharding": float(buckets),
    }
    if kind == "zero3":
        parts["weights"] = 2 * all_numbers / n
        parts["reference"] = record.reference and 2 * shape.parameters / n
        live = max(2 * shape.largest_block, min(ZERO_PREFETCH, shape.parameters))
        parts["sharding"] += 2 * live + 2 * (2 if record.reference else 1) * shape.head
    return {name: float(size) for name, size in parts.items()}
