"""What a plan is asked about: one run, on one kind of device."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

PRECISIONS = {
    "mixed": "float32 weights, bfloat16 arithmetic",
    "bf16": "bfloat16 weights and optimiser",
    "fp32": "float32 throughout",
}
SHARDINGS = ("none", "ddp", "fsdp2", "zero2", "zero3")
# name → size of its states, in sizes of what they belong to
OPTIMIZERS = {"adamw": 2.0, "adamw_8bit": 0.5, "sgd": 0.0}
MASKS = ("learned", "activation", "other", "none")


@dataclass(frozen=True)
class PlanSettings:
    """A run, as far as memory and time depend on it.

    Args:
        pairs: preference pairs of the data set.
        prompt_tokens, response_tokens: of an average prompt and response.
        max_length: tokens of the longest sequence; a batch is as wide as its longest row.
        epochs: passes over the data.
        objective: name of the loss.
        mask: ``learned``, ``activation``, ``other`` (random, data, dense: reads nothing of the reference) or ``none``.
        mask_layers: ``all`` blocks or the ``last``, that a learned mask reads.
        independent: two mask heads instead of one.
        lora: train adapters instead of the weights.
        lora_r: their rank.
        lora_targets: ``all-linear``, or names of modules; None: PEFT's for the architecture.
        load_in_4bit: the frozen linear layers have 4 bits (QLoRA), and the adapters are in bfloat16.
        double_quant: their scales are quantised too (``use_bnb_nested_quant``).
        precision: of :data:`PRECISIONS`.
        batch_size: pairs of a micro-batch on one device.
        accumulation: micro-batches of an optimiser step.
        checkpointing: gradient checkpointing.
        sharding: of :data:`SHARDINGS`.
        devices: number of them.
        precompute_ref: the reference is read from a cache on disk.
        optimizer: of :data:`OPTIMIZERS`.
        scorer_memory_mib: of the fused scorer's rows of logits; None: its default.
        padded: batches hold padding (attention then needs a mask of its own).
        attention: transformers' name of the attention implementation; None: what it chooses.
    """

    pairs: int = 10_000
    prompt_tokens: int = 200
    response_tokens: int = 200
    max_length: int = 1024
    epochs: float = 1.0
    objective: str = "sparsepo"
    mask: str = "learned"
    mask_layers: str = "all"
    independent: bool = False
    lora: bool = False
    lora_r: int = 16
    lora_targets: str | tuple[str, ...] | None = "all-linear"
    load_in_4bit: bool = False
    double_quant: bool = False
    precision: str = "mixed"
    batch_size: int = 1
    accumulation: int = 1
    checkpointing: bool = True
    sharding: str = "none"
    devices: int = 1
    precompute_ref: bool = False
    optimizer: str = "adamw"
    scorer_memory_mib: float | None = None
    padded: bool = True
    attention: str | None = None

    def __post_init__(self) -> None:
        for name in ("pairs", "prompt_tokens", "response_tokens", "max_length", "lora_r", "batch_size",
                     "accumulation", "devices"):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if not self.epochs > 0:
            raise ValueError(f"epochs={self.epochs!r} must be above 0.")
        if self.scorer_memory_mib is not None and not self.scorer_memory_mib > 0:
            raise ValueError(f"scorer_memory_mib={self.scorer_memory_mib!r} must be above 0.")
        for name, allowed in (("precision", PRECISIONS), ("sharding", SHARDINGS), ("optimizer", OPTIMIZERS),
                              ("mask", MASKS), ("mask_layers", ("all", "last"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        self._check_lengths()
        self._check_four_bits()
        if self.sharding == "none" and self.devices > 1:
            raise ValueError(f"devices={self.devices} need a sharding: ddp, fsdp2, zero2 or zero3.")

    def _check_lengths(self) -> None:
        if self.prompt_tokens + self.response_tokens > self.max_length:
            raise ValueError(
                f"prompt_tokens + response_tokens = {self.prompt_tokens + self.response_tokens} is more than "
                f"max_length={self.max_length}; the average row cannot be longer than the longest."
            )

    def _check_four_bits(self) -> None:
        if self.load_in_4bit and not self.lora:
            raise ValueError("load_in_4bit=True needs lora=True: quantised weights are not trained.")
        if self.load_in_4bit and self.sharding == "zero3":
            raise ValueError(
                "load_in_4bit=True with sharding='zero3' cannot be planned; use fsdp2, which shards them too."
            )

    @property
    def weight_dtype(self) -> str:
        """Type of the weights that are trained, or that adapters stand on, as far as they have not 4 bits."""
        return "bfloat16" if self.precision == "bf16" else "float32"

    @property
    def autocast(self) -> bool:
        """Whether arithmetic is bfloat16 by mixed precision (with bfloat16 weights too: norms then give float32)."""
        return self.precision != "fp32"

    @property
    def shard_weights(self) -> bool:
        """Whether each device holds a share of the weights."""
        return self.sharding in ("fsdp2", "zero3")

    def changed(self, **changes: Any) -> PlanSettings:
        """The same run with other settings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PlanSettings(**(values | changes))
