"""What to change when a run does not fit: every single change with what it saves, and the least that is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .disk import plan_disk
from .memory import MemoryPlan, plan_memory
from .needs import needs_of
from .settings import PlanSettings
from .shapes import ModelShape

# In the order in which they are tried together: what costs time, then digits, then what changes the method, then money
_NAMES = ("checkpointing", "batch", "scorer", "cache", "shard", "eight_bit", "half", "shorter", "lora", "four_bit",
          "more")  # fmt: skip
SMALL_SCORER = 256  # MiB of rows of logits
LARGE_CACHE = 50 << 30  # the default of precompute_ref_max_gib: a larger one is not what is tried first


@dataclass(frozen=True)
class Change:
    """One change.

    Args:
        flags: as `sparsepo train` takes it.
        cost: what it costs besides.
        settings: the changed run.
        memory: of the changed run, bytes on a device.
        saved: bytes less than before.
    """

    flags: str
    cost: str
    settings: PlanSettings
    memory: float
    saved: float


@dataclass(frozen=True)
class Advice:
    """Changes, the largest saving first; ``together``: the first of them in the order of what they cost that make it fit,
    None where not even all are enough."""

    changes: list[Change]
    together: list[Change] | None


def advise(
    shape: ModelShape,
    settings: PlanSettings,
    memory: MemoryPlan,
    device_bytes: float,
    tell: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Ranked changes.

    Args:
        shape: the model.
        settings: the run.
        memory: its plan.
        device_bytes: of a device.
        tell: called with the name of each change that is being looked at.
    """
    cache = plan_disk(shape, settings).total
    changes, helps = [], set()
    for name in _NAMES:
        for change in _changes(name, settings, cache):
            tell(change["flags"])
            found = plan_memory(shape, change["settings"], device_bytes)
            if found.total < memory.total:
                helps.add(name)
                changes.append(Change(memory=found.total, saved=memory.total - found.total, **change))
    changes.sort(key=lambda c: -c.saved)
    return Advice(changes, _together(shape, settings, helps, device_bytes, cache, tell))


def _together(
    shape: ModelShape,
    settings: PlanSettings,
    helps: set[str],
    device_bytes: float,
    cache: float,
    tell: Callable[[str], None],
) -> list[Change] | None:
    taken: list[Change] = []
    for name in _NAMES:
        if name not in helps or (name == "cache" and cache > LARGE_CACHE):
            continue
        for change in _changes(name, settings, cache):
            tell("with " + change["flags"])
            found = plan_memory(shape, change["settings"], device_bytes)
            before = taken[-1].memory if taken else float("inf")
            if found.total >= before:
                continue
            taken.append(Change(memory=found.total, saved=before - found.total, **change))
            settings = change["settings"]
            if found.fits(device_bytes):
                return taken
    return None


def _changes(name: str, settings: PlanSettings, cache: float) -> Iterator[dict[str, Any]]:
    """The change of that name, where there is something to change; ``cache``: bytes of a reference cache."""

    def change(flags: str, cost: str, **values: Any) -> dict[str, Any]:
        return {"flags": flags, "cost": cost, "settings": settings.changed(**values)}

    # FSDP2 shards floating numbers only
    storage = " --bnb_4bit_quant_storage bfloat16" if settings.load_in_4bit else ""
    if name == "checkpointing" and not settings.checkpointing:
        yield change("--activation_checkpointing true", "a third more time", checkpointing=True)
    if name == "batch" and settings.batch_size > 1:
        rest = settings.batch_size * settings.accumulation
        yield change(f"--per_device_train_batch_size 1 --gradient_accumulation_steps {rest}",
                     "same numbers, slower where rows are short", batch_size=1, accumulation=rest)  # fmt: skip
    if name == "scorer" and settings.scorer_memory_mib is None:
        yield change(f"--scorer_memory_mib {SMALL_SCORER}", "some speed where responses are long",
                     scorer_memory_mib=float(SMALL_SCORER))  # fmt: skip
    if name == "cache" and not settings.precompute_ref and needs_of(settings).reference:
        cost = f"{cache / 2**30:,.0f} GiB of disk, one pass of the reference before training"
        yield change("--precompute_ref true", cost, precompute_ref=True)
    if name == "shard" and settings.devices > 1 and settings.sharding in ("ddp", "zero2"):
        yield change("--accelerate_config fsdp2" + storage, "communication", sharding="fsdp2")
    if name == "eight_bit" and settings.optimizer == "adamw" and not settings.lora:
        yield change("--optim adamw_bnb_8bit", "optimiser states with 8 bits (bitsandbytes)", optimizer="adamw_8bit")
    if name == "half" and settings.precision == "mixed":
        cost = "none for frozen weights" if settings.lora else "updates below bfloat16's digits are lost"
        yield change("--dtype bfloat16", cost, precision="bf16")
    if name == "shorter" and settings.max_length >= 2 * (settings.prompt_tokens + settings.response_tokens):
        half = settings.max_length // 2
        yield change(f"--max_length {half}", "long rows are cut", max_length=half)
    if name == "lora" and not settings.lora:
        yield change("--use_peft true", "adapters instead of all weights", lora=True)
    if name == "four_bit" and not settings.load_in_4bit and settings.sharding != "zero3":
        flags = "--load_in_4bit true --dtype bfloat16"
        yield change(flags if settings.lora else f"--use_peft true {flags}",
                     "adapters; frozen weights rounded to 4 bits and unpacked for every product (bitsandbytes)",
                     lora=True, load_in_4bit=True, precision="bf16")  # fmt: skip
    if name == "more":
        count = 8 if settings.devices == 1 else 2 * settings.devices
        flags = f"--accelerate_config fsdp2 --num_processes {count}" + storage
        yield change(flags, f"{count} devices, communication", sharding="fsdp2", devices=count)
