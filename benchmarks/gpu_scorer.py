"""The part of benchmarks/gpu.py that times scoring heads alone; it needs neither TRL nor a model."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import Run, markdown, peak_of, ratio, spread, take_turns
from machines import trl_is_available
from rows import backends_in_models, use_rows
from scorer import Problem, ours, trl

from sparsepo.scoring import DenseScorer, FusedScorer


@dataclass(frozen=True)
class HeadShape:
    """Hidden states of 2 × pairs responses and a head."""

    name: str
    vocabulary: int
    hidden: int
    tokens: int
    pairs: int
    dtype: str

    @property
    def title(self) -> str:
        return (
            f"{self.name}: {self.pairs} pairs × 2 × {self.tokens} response tokens, H {self.hidden}, "
            f"V {self.vocabulary}, {self.dtype}"
        )


def head_shapes(args: argparse.Namespace) -> list[HeadShape]:
    """Heads of both models at the given lengths (half of them prompt), or tiny ones."""
    if args.tiny:
        return [HeadShape("tiny", 301, 32, 6, 2, "float32"), HeadShape("tiny half", 128, 32, 6, 2, "bfloat16")]
    heads = [("Pythia-1.4B", 50304, 2048, "float32"), ("Pythia-1.4B", 50304, 2048, "bfloat16"),
             ("Llama-8B", 128256, 4096, "bfloat16")]  # fmt: skip
    return [HeadShape(name, vocabulary, hidden, length // 2, args.pairs, dtype)
            for name, vocabulary, hidden, dtype in heads for length in args.lengths]  # fmt: skip


def variants(device: str) -> dict[str, Callable[[Problem], None]]:
    """Losses with gradients, by name; each row of 'fused' uses one backend for the arithmetic on rows."""
    found: dict[str, Callable[[Problem], None]] = {"dense": lambda p: ours(p, DenseScorer())}
    if trl_is_available():
        found["TRL DPO (no KL)"] = lambda p: trl(p, divergence=False)
        found["TRL composed (with KL)"] = lambda p: trl(p, divergence=True)
        found["frozen head: TRL DPO"] = lambda p: trl(p, divergence=False, frozen=True)
    found["fused"] = lambda p: ours(p, FusedScorer())
    for name, backend in backends_in_models(device).items():
        found[f"fused, rows {name}"] = _with(backend, lambda p: ours(p, FusedScorer()))
    for zeros in (0.5, 0.8, 0.9):
        found[f"fused, {zeros:.0%} zeros"] = lambda p, zeros=zeros: ours(p, FusedScorer(), zeros)
    found["fused, anchor, 80% zeros"] = lambda p: ours(p, FusedScorer(), 0.8, anchor_share=0.25)
    found["frozen head: dense"] = lambda p: ours(p, DenseScorer(), frozen=True)
    found["frozen head: fused"] = lambda p: ours(p, FusedScorer(), frozen=True)
    found["frozen head: fused, reference cached"] = lambda p: ours(p, FusedScorer(), frozen=True, cached=True)
    return found


def _with(backend: Any, run: Callable[[Problem], None]) -> Callable[[Problem], None]:
    def wrapped(problem: Problem) -> None:
        with use_rows(backend):
            run(problem)

    return wrapped


def without_those_that_do_not_fit(runs: dict[str, Run], prepare: Run) -> tuple[dict[str, Run], list[str]]:
    """Run each once: the ones that do, and the names of those that run out of the device's memory."""
    fit, left_out = {}, []
    for name, run in runs.items():
        prepare()
        print(f"trying  {name}", file=sys.stderr, flush=True)
        try:
            run()
            fit[name] = run
        except torch.OutOfMemoryError:
            left_out.append(name)
        prepare()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return fit, left_out


def measure_head(args: argparse.Namespace, shape: HeadShape) -> dict[str, Any]:
    """Times and peaks of all variants over one head."""
    problem = Problem(argparse.Namespace(**vars(shape)), args.device)

    def forget() -> None:
        problem.weight.grad = problem.hidden.grad = None

    runs = {name: (lambda run=run: run(problem)) for name, run in variants(args.device).items()}
    runs, left_out = without_those_that_do_not_fit(runs, forget)
    seconds = take_turns(runs, args.rounds, args.device, prepare=forget)
    rows = []
    for name, times in seconds.items():
        forget()
        peak = peak_of(runs[name], args.device)
        rows.append({"variant": name, "median": statistics.median(times), "seconds": times, "peak_mib": peak})
    return {"title": shape.title, "rows": rows, "out_of_memory": left_out}


def head_table(result: dict[str, Any]) -> str:
    """Markdown with ratios to the dense path and, where it was there, to TRL's heads."""
    seconds = {row["variant"]: row["seconds"] for row in result["rows"]}
    bases = [base for base in ("dense", "TRL DPO (no KL)", "TRL composed (with KL)") if base in seconds]
    lines = []
    for row in result["rows"]:
        ratios = [ratio(row["seconds"], seconds[base]) for base in bases]
        times = [1e3 * t for t in row["seconds"]]
        lines.append(
            [row["variant"], f"{1e3 * row['median']:.1f}", spread(times, 1), *ratios, f"{row['peak_mib']:.0f}"]
        )
    header = ["variant", "ms (median)", "spread", *(f"÷ {base}" for base in bases), "peak extra MiB"]
    text = f"### {result['title']}\n\n{markdown(header, lines)}"
    for name in result["out_of_memory"]:
        text += f"\n{name}: ran out of the device's memory.\n"
    return text
