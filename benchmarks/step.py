"""Time and peak memory of a whole training step: ours against TRL's DPOTrainer, at the lengths of the four tasks.

    python benchmarks/step.py --memory --output benchmarks/results/step_float32

A step is what Trainer's loop does for a batch: forward of reference and policy, loss, backward, clipping, optimiser. Both
sides are driven through their own ``training_step``, ``_clip_grad_norm`` and optimiser, on the same tokens; models are
random and of GPT-2 small's sizes (``--geometry``, ``--layers``, … choose others). Variants take turns within each round;
ratios are of medians, with the smallest and largest ratio within a round in brackets. Peak memory is what torch allocates
in a further step beside models and optimiser, gradients included (``--memory``).

``SparsePO`` has learned masks and the full-vocabulary KL, and is a step that is not logged; a logged step also collects
the entropy, mean logits and top-1 hits that TRL's step always does. TRL's head scores prompt positions too on devices
without Triton: ``head on responses`` is the same step with that switched off. ``N % zeros`` holds that share of the learned
masks at zero. LoRA variants train adapters on all linear layers and are compared with TRL's on precomputed reference
log-probabilities. Variants whose settings the installed sparsepo lacks are left out.

Results are kept by shape in OUTPUT.json: a run that was cut off goes on where it stopped, ``--fresh`` measures again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import warnings
from typing import Any

import torch
from common import (
    TASK_LENGTHS,
    Results,
    add_run_options,
    clock_note,
    machine,
    markdown,
    peak_extra,
    ratio,
    spread,
    take_turns,
)
from step_variants import VARIANTS, Bench

BASES = {
    False: ("TRL DPO", "TRL DPO, head on responses"),
    True: ("LoRA: TRL DPO, reference precomputed", "LoRA: TRL DPO, precomputed, head on responses"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=TASK_LENGTHS, metavar="PROMPT,RESPONSE", help="tokens")
    parser.add_argument("--checkpointing", nargs="+", default=("off", "on"), choices=("off", "on"))
    parser.add_argument("--variants", nargs="+", metavar="WORDS", help="only variants whose name begins so")
    parser.add_argument("--exactly", nargs="+", metavar="NAME", choices=tuple(VARIANTS), help="only these variants")
    parser.add_argument("--geometry", choices=("gpt2", "llama"), default="gpt2")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--ragged", action="store_true", help="unequal lengths")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    add_run_options(parser)
    args = parser.parse_args()
    unknown = [words for words in args.variants or () if not any(name.startswith(words) for name in VARIANTS)]
    if unknown:
        parser.error(f"no variant begins with {unknown[0]!r}; there are: {'; '.join(VARIANTS)}")
    return args


def wanted_variants(args: argparse.Namespace) -> list[str]:
    """Variants that the command asks for, whether the installed sparsepo has their settings or not."""
    if args.exactly:
        return [name for name in VARIANTS if name in args.exactly]
    return [name for name in VARIANTS if any(name.startswith(words) for words in args.variants or [""])]


def chosen_variants(args: argparse.Namespace) -> list[str]:
    """Variants of this run, the ones that others are compared with among them."""
    names = [name for name, variant in VARIANTS.items() if variant.available]
    chosen = [name for name in names if name in wanted_variants(args)]
    kinds = {VARIANTS[name].lora for name in chosen}
    return [name for name in names if name in chosen or any(name in BASES[kind] for kind in kinds)]


def setting_of(args: argparse.Namespace) -> str:
    """What must be equal for results to stand in one file."""
    ragged = ", lengths from half of those to all of them" if args.ragged else ""
    return (
        f"{args.pairs} pairs{ragged}, {args.geometry}, {args.layers} layers × {args.hidden}, V {args.vocabulary}, "
        f"{args.dtype}, {machine(args.device)}{clock_note(args.clock)}"
    )


def measure(args: argparse.Namespace, names: list[str], shape: str, checkpointing: str) -> list[dict[str, Any]]:
    """The rows of one shape."""
    prompt, response = (int(part) for part in shape.split(","))
    bench = Bench(args, prompt, response, checkpointing == "on")
    steps = {name: bench.step_of(name) for name in names}
    seconds = take_turns(steps, args.rounds, args.device, clock=args.clock)
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        peak = peak_extra(steps[name], args.device) if args.memory else None
        rows.append({"variant": name, "median": statistics.median(times), "seconds": times, "peak_mib": peak})
    return rows


def table(rows: list[dict[str, Any]], lora: bool) -> str:
    """Markdown of the full or the LoRA variants of a shape, with ratio columns; empty where there are none."""
    rows = [row for row in rows if VARIANTS[row["variant"]].lora == lora]
    if not rows:
        return ""
    seconds = {row["variant"]: row["seconds"] for row in rows}
    header = ["variant", "seconds (median)", "spread", "÷ TRL", "÷ TRL, head on responses", "peak extra MiB"]
    lines = []
    for row in rows:
        ratios = [ratio(row["seconds"], seconds[base]) if base in seconds else "" for base in BASES[lora]]
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append([row["variant"], f"{row['median']:.2f}", spread(row["seconds"]), *ratios, memory])
    return markdown(header, lines) + "\n"


def report(result: dict[str, Any]) -> str:
    """The tables of one shape."""
    title = (
        f"## {result['prompt']} prompt + {result['response']} response tokens, gradient checkpointing "
        f"{result['checkpointing']}, {result['rounds']} rounds\n"
    )
    left_out = "".join(f"Left out: {name} (no setting {', '.join(gone)}).\n" for name, gone in result["left_out"])
    tables = filter(None, (table(result["rows"], lora) for lora in (False, True)))
    return "\n".join([title, *tables, *filter(None, [left_out])])


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.getLogger("sparsepo").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="(transformers|trl|peft|torch).*")
    command = f"python benchmarks/step.py {' '.join(sys.argv[1:])}"
    results = Results(args.output, setting_of(args), command, report, args.fresh)
    chosen = chosen_variants(args)
    lacking = [(name, VARIANTS[name].missing) for name in wanted_variants(args) if not VARIANTS[name].available]
    for shape in args.shapes:
        for checkpointing in args.checkpointing:
            key = f"{shape} checkpointing {checkpointing}"
            # ratios hold within a run: what was held is measured again beside what is new
            held = [] if args.fresh else [row["variant"] for row in results.found.get(key, {"rows": []})["rows"]]
            if results.holds(key, args.rounds, chosen):
                continue
            rows = measure(args, [name for name in VARIANTS if name in {*held, *chosen}], shape, checkpointing)
            prompt, response = (int(part) for part in shape.split(","))
            found = {"prompt": prompt, "response": response, "checkpointing": checkpointing, "rounds": args.rounds}
            results.add(key, {**found, "rows": rows, "left_out": lacking})
    print(results.text())


if __name__ == "__main__":
    main()
