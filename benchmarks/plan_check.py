"""What `sparsepo plan` says of memory, beside what training steps take: random weights of several sizes, full and LoRA.

    python benchmarks/plan_check.py --output benchmarks/results/plan_check

On a CUDA device: ``torch.cuda.max_memory_allocated`` of a whole optimiser step (the third), and what weights, gradients
and optimiser states hold between the phases; the step is the repository's own (training/step.py and the fused scorer), with
fused AdamW and without padding. TRL and datasets are not needed. ``--tiny`` runs small sizes on a CPU, where torch's
profiler counts what is allocated: to see that it works. Results are written after every case; ``--seconds`` ends a run in
time.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from common import markdown, peak_allocated, write_results
from plan_check_runs import HAS_TRL, MODELS, TINY, Case, Run, cases
from transformers import AutoConfig

from sparsepo.planning.memory import plan_memory
from sparsepo.planning.shapes import shape_of

MIB = 1 << 20


def tensor_bytes(tensors: Any) -> int:
    """Bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(case: Case, device: str) -> dict[str, Any]:
    """Peak, parts and seconds of a case."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated() if device == "cuda" else 0
    run = Run(case, device)
    run.step()
    states = [t for state in run.optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    held = {"weights": tensor_bytes([*run.policy.parameters(), *run.scales()]), "optimizer": tensor_bytes(states)}
    held["reference"] = 0 if run.reference is None else tensor_bytes(run.reference.parameters())
    run.micro_batch()
    gradients = [p.grad for g in run.optimizer.param_groups for p in g["params"] if p.grad is not None]
    held["gradients"] = tensor_bytes(gradients)
    del gradients
    run.optimizer.zero_grad(set_to_none=True)
    if device != "cuda":
        static = sum(held[name] for name in ("weights", "optimizer", "reference"))
        return {"peak": static + peak_allocated(run.step) * MIB, "held": held, "seconds": None}
    run.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run.step()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    found: dict[str, Any] = {
        "peak": torch.cuda.max_memory_allocated(),  # with cuBLAS's workspaces, which an earlier case has left
        "base": base,
        "held": held,
        "reserved": torch.cuda.max_memory_reserved(),
        "outside": total - free - torch.cuda.memory_reserved(),
    }
    found["idle"] = torch.cuda.memory_allocated() - sum(held[n] for n in ("weights", "optimizer", "reference"))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return found | {"seconds": statistics.median(times), "all_seconds": times}


def planned(case: Case, device: str, memory: float) -> dict[str, Any]:
    """What `sparsepo plan` says of a case."""
    shape = shape_of(AutoConfig.for_model(**(MODELS | TINY)[case.model]), case.model)
    start = time.perf_counter()
    plan = plan_memory(shape, case.settings, memory, on_gpu=device == "cuda")
    record = plan.record
    static = {"weights": record.weights, "reference": record.reference,
              "gradients": record.trainable_bytes + 4 * record.mask_parameters}  # fmt: skip
    return {
        "parts": plan.parts,
        "allocated": plan.allocated,
        "when": plan.when,
        "static": static,
        "flops": record.flops,
        "operations": record.operations,
        "traffic": record.traffic,
        "rows": record.rows,
        "trainable": record.trainable,
        "phases": record.phases,
        "seconds": time.perf_counter() - start,
    }


def again(path: str, output: str | None) -> None:
    """The measurements of an earlier run beside what is planned now."""
    found = json.loads(Path(path).read_text())
    for row in found["rows"]:
        row["planned"] = planned(Case(**row["case"]), "cuda", found["memory"])
        print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    text = f"`python benchmarks/plan_check.py`\n\nMeasured on {found['setting']}\n\n{table(found['rows'])}"
    if output:
        write_results(output, text, found)
    print(text)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: planned and measured peaks, and the parts that stay."""
    header = ["run", "planned MiB", "measured MiB", "difference", "weights + reference", "optimiser", "gradients",
              "ms a step"]  # fmt: skip
    lines = []
    for row in rows:
        plan, found = row["planned"], row["measured"]
        if "error" in found:
            lines.append([row["title"], f"{plan['allocated'] / MIB:.0f}", found["error"], *[""] * 5])
            continue
        both = []
        for names in (("weights", "reference"), ("optimizer",), ("gradients",)):
            told = sum(plan["static"].get(name, plan["parts"].get(name, 0)) for name in names)
            both.append(f"{told / MIB:.0f} / {sum(found['held'][name] for name in names) / MIB:.0f}")
        off = plan["allocated"] / found["peak"] - 1
        seconds = "" if found["seconds"] is None else f"{1e3 * found['seconds']:.0f}"
        lines.append([row["title"], f"{plan['allocated'] / MIB:.0f}", f"{found['peak'] / MIB:.0f}", f"{off:+.1%}", *both,
                      seconds])  # fmt: skip
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--seconds", type=float, default=220, help="take up no new case after so many")
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--again", metavar="FILE.json", help="measure nothing: plan anew what this file has measured")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.again:
        again(args.again, args.output)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("no CUDA device is there; --tiny tries the command on a CPU")
    start = time.perf_counter()
    memory = float(torch.cuda.get_device_properties(0).total_memory) if device == "cuda" else 80.0 * 2**30
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.machine()
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    setting = f"{name}, {versions}, TRL {'there' if HAS_TRL else 'not there'}"
    command = f"python benchmarks/plan_check.py {' '.join(sys.argv[1:])}"
    rows: list[dict[str, Any]] = []
    for case in cases(args.tiny):
        if time.perf_counter() - start > args.seconds:
            print("time is up", file=sys.stderr)
            break
        row: dict[str, Any] = {"title": case.title, "case": asdict(case), "planned": planned(case, device, memory)}
        try:
            row["measured"] = measure(case, device)
        except torch.OutOfMemoryError:
            row["measured"] = {"error": "out of memory"}
        except Exception as error:  # the other cases are worth having
            traceback.print_exc()
            row["measured"] = {"error": f"{type(error).__name__}: {error}"[:300]}
        rows.append(row)
        print(table(rows[-1:]).splitlines()[-1], f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        text = f"`{command}`\n\n{setting}\n\n{table(rows)}"
        if args.output:
            write_results(args.output, text, {"setting": setting, "memory": memory, "rows": rows})
    print(f"{setting}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
