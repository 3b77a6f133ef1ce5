"""A plan in the terminal."""

from __future__ import annotations

from typing import Any

from .tables import say, text_table

GIB = 1 << 30


def print_plan(plan: Any) -> None:
    """Everything a plan says, as tables."""
    from rich.console import Console

    from sparsepo.planning.memory import PARTS, USABLE

    console = Console()
    shape, settings, device, memory = plan.shape, plan.settings, plan.device, plan.memory
    tied = ", head tied to the embedding" if shape.is_tied else ""
    say(console, f"{shape.name}: {shape.parameters:,} parameters, {shape.layers} blocks × {shape.hidden_size}, "
                 f"vocabulary {shape.vocabulary:,}{tied}")  # fmt: skip
    say(console, _run_line(plan))
    rows = [[PARTS[name], gib(size)] for name, size in memory.parts.items() if size >= 0.005 * GIB]
    rows.append(["together", gib(memory.total)])
    title = f"Memory of a device, GiB, at its most ({memory.when}), rows of {settings.max_length} tokens"
    console.print(text_table(title, ("part", "GiB"), rows))
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    say(console, f"{verdict}: {gib(memory.total)} of the {gib(device.memory)} GiB of each device, {device.name} "
                 f"({USABLE:.0%} of it counted on)")  # fmt: skip
    _print_time(console, plan)
    _print_disk(console, plan)
    if plan.advice is not None:
        _print_advice(console, plan)


def _run_line(plan: Any) -> str:
    settings, record = plan.settings, plan.memory.record
    what = f"LoRA r {settings.lora_r}" if settings.lora else "all weights"
    what += " on 4 bits" if settings.load_in_4bit else ""
    words = [
        f"{settings.objective}, mask {settings.mask}",
        f"{what}: {record.trainable:,} trained numbers" + (
            f" and {record.mask_parameters:,} of the mask" if record.mask_parameters else ""
        ),
        {"mixed": "float32 weights, bfloat16 arithmetic", "bf16": "bfloat16 weights", "fp32": "float32"}[settings.precision],
        f"{settings.batch_size} pairs × {settings.accumulation} micro-batches × {settings.devices} device(s)",
        "checkpointing" if settings.checkpointing else "no checkpointing",
    ]  # fmt: skip
    if settings.sharding != "none":
        words.append(settings.sharding)
    if settings.precompute_ref:
        words.append("reference from a cache")
    return "; ".join(words)


def _print_time(console: Any, plan: Any) -> None:
    settings, time = plan.settings, plan.time
    rows = [[name, f"{1e3 * seconds:.0f}"] for name, seconds in time.phases.items() if seconds]
    rows.append([f"step: {settings.accumulation} of these and the optimiser", f"{1e3 * time.step:.0f}"])
    title = (
        f"Time, ms, average rows of {settings.prompt_tokens} + {settings.response_tokens} tokens "
        "(a model: docs/plan.md)"
    )
    console.print(text_table(title, ("part of a micro-batch", "ms"), rows))
    if time.communication > time.step - time.optimizer - 1e-9:
        say(console, f"bound by communication: {time.communication:.2f} s a step")
    say(console, f"{time.steps:,} steps ({settings.pairs:,} pairs × {settings.epochs:g}): {duration(time.total)}, "
                 f"{time.utilisation:.0%} of the device's TFLOPS")  # fmt: skip
    if time.filling:
        say(console, f"of which filling the reference cache: {duration(time.filling)}")


def _print_disk(console: Any, plan: Any) -> None:
    disk, settings = plan.disk, plan.settings
    per_token = sum(disk.token.values())
    largest = max(disk.token, key=lambda name: disk.token[name])
    used = "" if settings.precompute_ref else " (not used: precompute_ref is off)"
    say(console, f"Reference cache on disk{used}: {gib(disk.total)} GiB, {per_token:,} bytes for each of "
                 f"{disk.tokens:,} response tokens, most of it {largest}")  # fmt: skip


def _print_advice(console: Any, plan: Any) -> None:
    advice, device = plan.advice, plan.device
    say(console, "What to change, one at a time: saves GiB, then GiB")
    for change in advice.changes:  # lines, not a table: flags are copied from here
        say(console, f"  {gib(change.saved):>6} {gib(change.memory):>6}  {change.flags}  ({change.cost})")
    if plan.fits:
        return
    if advice.together is None:
        say(
            console,
            f"Not even all of these together fit into {gib(device.memory)} GiB: take more devices or larger ones.",
        )
        return
    flags = " ".join(change.flags for change in advice.together)
    say(console, f"Enough: {flags}\n  then {gib(advice.together[-1].memory)} GiB")


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
