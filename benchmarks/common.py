"""What the benchmarks share: turns, spreads, peak memory of fresh processes, and how results are named and written."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], None]

# prompt and response tokens of the four tasks: sentiment, dialogue, summarisation, code
TASK_LENGTHS = ("8,64", "64,192", "350,40", "150,80")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def add_clock(parser: argparse.ArgumentParser) -> None:
    """The option ``--clock``, for :func:`take_turns`."""
    text = "seconds on the wall, or of the processor in all threads (steadier beside other load; CPU only)"
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help=text)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """How a table is measured and where it goes, the same for every script that keeps tables in :class:`Results`."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    add_clock(parser)
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--fresh", action="store_true", help="measure again what OUTPUT.json holds")
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")


def clock_note(clock: str) -> str:
    """What a table's setting adds for a clock other than the wall's."""
    return "" if clock == "wall" else ", seconds of the processor"


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


def peak_extra(run: Run, device: str = "cpu") -> float:
    """Peak of what torch allocates during a call, beside what was there before it, MiB."""
    return peak_of(run, device) if device.startswith("cuda") else peak_allocated(run)


def take_turns(
    variants: dict[str, Run],
    rounds: int,
    device: str = "cpu",
    warmups: int = 1,
    prepare: Run | None = None,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of each variant in each round. Variants take turns, so that a noisy machine disturbs all alike; every round
    begins with another one. The first rounds warm up and do not count. ``prepare`` runs untimed before each call.
    ``clock``: of :data:`CLOCKS`; the processor's counts neither waiting nor what other processes do, nor a GPU's work."""
    if clock == "cpu" and device.startswith("cuda"):
        raise ValueError("--clock cpu does not see a GPU's work; use --clock wall.")
    now = CLOCKS[clock]
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    for number in range(rounds + warmups):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            if prepare is not None:
                prepare()
            wait()
            start = now()
            variants[name]()
            wait()
            took = now() - start
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


class Results:
    """Tables of one setting, kept by key in OUTPUT.json, so that a run that was cut off goes on where it stopped.

    Args:
        output: path without ending, or None to keep nothing.
        setting: what must be equal for tables to stand in one file.
        command: how they are made.
        table: Markdown of one of them.
        fresh: what the files hold is measured again, and forgotten where its setting is another.
    """

    def __init__(
        self,
        output: str | None,
        setting: str,
        command: str,
        table: Callable[[dict[str, Any]], str],
        fresh: bool = False,
    ) -> None:
        self.output, self.setting, self.command, self._table, self.fresh = output, setting, command, table, fresh
        self.found: dict[str, dict[str, Any]] = {}
        path = Path(f"{output}.json")
        if output is not None and path.exists():
            earlier = json.loads(path.read_text())
            if earlier["setting"] != setting and not fresh:
                sys.exit(
                    f"{path} holds results of another setting ({earlier['setting']}); choose another --output, or "
                    "--fresh to replace them."
                )
            if earlier["setting"] == setting:
                self.found = {result["key"]: result for result in earlier["results"]}

    def holds(self, key: str, rounds: int, variants: Sequence[str] = ()) -> bool:
        """Whether a table is there with at least so many rounds and these variants, and is not to be measured afresh."""
        found = self.found.get(key, {"rounds": 0, "rows": []})
        has = {row["variant"] for row in found["rows"]}
        held = not self.fresh and found["rounds"] >= rounds and has >= set(variants)
        print(f"{key}: held by {self.output}.json" if held else key, file=sys.stderr, flush=True)
        return held

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Take a table up and write the files."""
        self.found[key] = {"key": key, **result}
        if self.output is not None:
            data = {"setting": self.setting, "results": list(self.found.values())}
            write_results(self.output, self.text(), data)

    def text(self) -> str:
        """All tables."""
        return f"`{self.command}`\n\n{self.setting}\n\n" + "\n".join(map(self._table, self.found.values()))
