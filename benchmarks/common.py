"""What the benchmarks share: turns, spreads, peak memory of fresh processes, and how results are named and written."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], None]


def processor() -> str:
    """Name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def machine(device: str = "cpu") -> str:
    """What a result was measured on: device, threads, versions."""
    where = torch.cuda.get_device_name(0) if device.startswith("cuda") else processor()
    versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "trl")]
    return ", ".join([where, f"{torch.get_num_threads()} thread(s)", *versions])


def resident(field: str) -> float:
    """A field of this process's status, MiB: VmRSS (now) or VmHWM (the peak). Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_of(run: Run, device: str = "cpu") -> float:
    """Peak memory of a call above what is there before it, MiB: of the process, or of the GPU's allocator."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what an earlier call freed would otherwise count as there before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before_mib = resident("VmRSS")
    run()
    return resident("VmHWM") - before_mib


def peak_allocated(run: Run) -> float:
    """Largest sum of what torch allocates on the CPU during a call, beside what was there before it, MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def peak_in_fresh_process(script: str, arguments: Sequence[str], name: str) -> float:
    """Peak memory of one variant: the script run anew with ``--only NAME``, which prints it last, MiB."""
    command = [sys.executable, script, *arguments, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"--only {name!r} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def take_turns(
    variants: dict[str, Run], rounds: int, device: str = "cpu", warmups: int = 1, prepare: Run | None = None
) -> dict[str, list[float]]:
    """Seconds of each variant in each round. Variants take turns, so that a noisy machine disturbs all alike; every round
    begins with another one. The first rounds warm up and do not count. ``prepare`` runs untimed before each call."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    for number in range(rounds + warmups):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            if prepare is not None:
                prepare()
            wait()
            start = time.perf_counter()
            variants[name]()
            wait()
            took = time.perf_counter() - start
            if number >= warmups:
                seconds[name].append(took)
            print(f"round {number}/{rounds + warmups - 1}  {took:7.3f} s  {name}", file=sys.stderr, flush=True)
    return seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Smallest and largest value."""
    return f"{min(values):.{digits}f}–{max(values):.{digits}f}"


def ratio(numerator: Sequence[float], denominator: Sequence[float], digits: int = 2) -> str:
    """Ratio of the medians, and the smallest and largest ratio within a round."""
    within = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return f"{statistics.median(numerator) / statistics.median(denominator):.{digits}f} ({spread(within, digits)})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def write_results(output: str, text: str, data: Any) -> None:
    """OUTPUT.md and OUTPUT.json, complete or not at all."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("md", text), ("json", json.dumps(data, indent=1) + "\n")):
        part = Path(f"{output}.{suffix}.part")
        part.write_text(content)
        part.replace(f"{output}.{suffix}")
