"""All GPU measurements with one command: arithmetic on rows, scoring heads, and whole training steps.

    CUDA_VISIBLE_DEVICES=0 python benchmarks/gpu.py --output benchmarks/results/gpu

Models have random weights and the sizes of Pythia-1.4B (full training) and of an 8B Llama (LoRA, bfloat16 weights).
Variants take turns within each round; times end with ``torch.cuda.synchronize``; ratios are of medians, with the smallest
and largest ratio within a round in brackets. Peak memory is ``torch.cuda.max_memory_allocated`` above what was there
before the call. Where TRL or peft is absent, whole steps and TRL's heads are left out, and the output says so. ``--tiny``
runs all of it in a minute or two with small sizes, on a CPU too: to see that it works, not to measure.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import warnings
from typing import Any

import rows as row_benchmark
import torch
from common import write_results
from gpu_scorer import head_shapes, head_table, measure_head
from machines import machine_with_what_is_there

PARTS = ("rows", "scorer", "pythia", "llama")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="tokens of a sequence")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--checkpointing", choices=("off", "on"), default="on")
    parser.add_argument("--variants", nargs="+", help="of whole steps; unset: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", "--dry_run", action="store_true", help="small sizes, one round, CPU without CUDA")
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json, after each part")
    args = parser.parse_args()
    args.threads = 1
    if args.tiny:
        args.lengths, args.rounds = [24], 1
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device is there; --tiny tries the command on a CPU")
    return args


def run_part(args: argparse.Namespace, part: str, left_out: list[str]) -> list[dict[str, Any]]:
    """Tables of a part, with their numbers."""
    if part == "rows":
        sizes = argparse.Namespace(device=args.device, rows=[16] if args.tiny else [128, 2048], rounds=args.rounds)
        sizes.vocabularies = [301] if args.tiny else [50304, 128256]
        return [{"text": f"### Arithmetic on rows\n\n{row_benchmark.report(sizes)}"}]
    if part == "scorer":
        results = [measure_head(args, shape) for shape in head_shapes(args)]
        return [{"text": head_table(result), **result} for result in results]
    absent = [name for name in ("trl", "peft", "datasets", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        left_out.append(f"{part}: whole training steps need {', '.join(absent)}, not installed here.")
        return []
    from gpu_steps import GEOMETRIES, measure_steps, step_table

    results = [measure_steps(args, GEOMETRIES[part], length) for length in args.lengths]
    return [{"text": step_table(result), **result} for result in results]


def main() -> None:
    args = arguments()
    logging.getLogger("sparsepo").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="(transformers|trl|peft|torch).*")
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    left_out: list[str] = []
    if importlib.util.find_spec("trl") is None:
        left_out.append("TRL's heads: TRL is not installed here.")
    setting = machine_with_what_is_there(args.device)
    command = f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}"
    found: dict[str, list[dict[str, Any]]] = {}
    text = ""
    for part in args.parts:
        found[part] = run_part(args, part, left_out)
        tables = [result["text"] for results in found.values() for result in results]
        notes = "".join(f"\nLeft out: {note}\n" for note in left_out)
        text = f"`{command}`\n\n{setting}\n{notes}\n" + "\n".join(tables)
        if args.output:
            write_results(args.output, text, {"setting": setting, "parts": found, "left_out": left_out})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(text)


if __name__ == "__main__":
    main()
