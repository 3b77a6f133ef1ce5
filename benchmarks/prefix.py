"""Backbone forward and backward with each prompt once, against a batch that concatenates prompts and responses.

    python benchmarks/prefix.py --output benchmarks/results/prefix_float32

The policy's side of a step below the head, on P pairs of random tokens: hidden states and the gradients of all parameters.
``separate`` is the ordinary batch of 2P sequences; ``cache`` and ``row`` are the two routes of
:class:`sparsepo.training.prefix.PrefixSharing`, forced; ``auto`` is what it chooses by itself. Variants take turns within
each round; a speed-up is a ratio of medians, with the smallest and largest within a round in brackets. Before anything is
timed every route's hidden states and gradients are compared with those of ``separate``; a difference above rounding ends
the command. Transformers drops the cache under gradient checkpointing, where ``row`` alone is left.

``ideal`` is the ratio of the tokens alone. The vocabulary is small, so that no embedding's gradient adds to both sides.
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
from step_variants import model_config
from torch import Tensor, nn
from transformers import AutoModel

from sparsepo.training.prefix import PrefixSharing

SHAPES = (*TASK_LENGTHS, "512,512")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # norm of a difference over the norm of what was expected


class OneRoute(PrefixSharing):
    """Prefix sharing by a given route wherever it is proven."""

    def __init__(self, route: str) -> None:
        super().__init__("on")
        self.route = route

    def _allowed(self, backbone: nn.Module, tapped: bool) -> tuple[str, ...]:
        return (self.route,)


def variants(checkpointing: bool) -> dict[str, PrefixSharing]:
    """Ways to run a backbone, by name."""
    routes = ("row",) if checkpointing else ("cache", "row")
    return {
        "separate": PrefixSharing("off"),
        **{name: OneRoute(name) for name in routes},
        "auto": PrefixSharing("auto"),
    }


def random_batch(args: argparse.Namespace, prompt: int, response: int) -> dict[str, Tensor]:
    """P pairs as the collator gives them, without padding; ``--ragged``: from half of the lengths to all of them."""
    g = torch.Generator().manual_seed(0)
    pairs, length = args.pairs, prompt + response
    ids = torch.randint(1, args.vocabulary, (2 * pairs, length), generator=g)
    low = 2 if args.ragged else 1
    prompts = torch.randint(max(1, prompt // low), prompt + 1, (pairs,), generator=g)
    responses = torch.randint(max(1, response // low), response + 1, (2 * pairs,), generator=g)
    prompts[0], responses[0] = prompt, response
    position = torch.arange(length)
    start = prompts.repeat(2)[:, None]
    ids = torch.where(position < start, ids[:pairs].repeat(2, 1), ids)
    attended = position < start + responses[:, None]
    return {
        "input_ids": ids.where(attended, 0).to(args.device),
        "attention_mask": attended.long().to(args.device),
        "completion_mask": (attended & (position >= start)).long().to(args.device),
    }


class Bench:
    """A backbone, a batch, and the gradient that its hidden states get."""

    def __init__(self, args: argparse.Namespace, model_type: str, shape: str, checkpointing: bool) -> None:
        prompt, response = (int(part) for part in shape.split(","))
        sizes = argparse.Namespace(**{**vars(args), "geometry": model_type, "positions": max(1024, prompt + response)})
        torch.manual_seed(0)
        config = model_config(sizes)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)  # as TRL's disable_dropout
        self.backbone = AutoModel.from_config(config, dtype=getattr(torch, args.dtype)).to(args.device).train()
        if checkpointing:
            self.backbone.activation_checkpointing_enable({"use_reentrant": False})
        self.batch = random_batch(args, prompt, response)
        response_mask = self.batch["completion_mask"][:, 1:, None]  # what a loss reads: states before response tokens
        g = torch.Generator().manual_seed(1)
        size = (*response_mask.shape[:2], args.hidden)
        self.gradient = (torch.randn(size, generator=g).to(args.device) * response_mask).to(self.backbone.dtype)

    def forget(self) -> None:
        """Drop the gradients."""
        self.backbone.zero_grad(set_to_none=True)

    def run(self, sharing: PrefixSharing) -> Tensor:
        """Forward and backward; the hidden states that predict response tokens, others zero."""
        states = sharing.run(self.backbone, self.batch, last=False).last_hidden_state[:, :-1]
        (states * self.gradient).sum().backward()
        return states.detach() * (self.gradient != 0)

    def values(self, sharing: PrefixSharing) -> tuple[Tensor, Tensor]:
        """Hidden states, and all gradients together."""
        self.forget()
        states = self.run(sharing)
        gradients = [p.grad.flatten().float() for p in self.backbone.parameters() if p.grad is not None]
        return states.float(), torch.cat(gradients)


def largest_difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest norm of a difference relative to the norm of what was expected."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def measure(args: argparse.Namespace, model_type: str, shape: str, checkpointing: bool) -> list[dict[str, Any]]:
    """The rows of one table."""
    bench = Bench(args, model_type, shape, checkpointing)
    ways = variants(checkpointing)
    expected = bench.values(ways["separate"])
    differences = {name: largest_difference(bench.values(way), expected) for name, way in ways.items()}
    for name, difference in differences.items():
        if not difference < TOLERANCE[args.dtype]:
            sys.exit(f"{model_type}, {shape}: {name} differs from separate by {difference:.1e}.")
    turns = {name: lambda way=way: bench.run(way) for name, way in ways.items()}
    seconds = take_turns(turns, args.rounds, args.device, warmups=0, prepare=bench.forget, clock=args.clock)
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        bench.forget()
        peak = peak_extra(turns[name], args.device) if args.memory else None
        row = {"variant": name, "median": statistics.median(times), "seconds": times}
        rows.append({**row, "difference": differences[name], "peak_mib": peak})
    return rows


def table(result: dict[str, Any]) -> str:
    """Markdown of one model type and shape."""
    rows, (prompt, response) = result["rows"], map(int, result["shape"].split(","))
    base = rows[0]["seconds"]
    header = ["variant", "seconds (median)", "spread", "times faster", "largest difference", "peak extra MiB"]
    lines = [
        [
            row["variant"],
            f"{row['median']:.3f}",
            spread(row["seconds"], 3),
            ratio(base, row["seconds"]),
            f"{row['difference']:.0e}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        ]
        for row in rows
    ]
    ideal = 2 * (prompt + response) / (prompt + 2 * response)
    title = f"## {result['type']}, {prompt} prompt + {response} response tokens, "
    title += f"gradient checkpointing {result['checkpointing']} (ideal {ideal:.2f})"
    return f"{title}\n\n{markdown(header, lines)}\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=("gpt2", "llama"), choices=("gpt2", "llama"))
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="PROMPT,RESPONSE", help="tokens")
    parser.add_argument("--checkpointing", nargs="+", default=("off", "on"), choices=("off", "on"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--ragged", action="store_true", help="unequal lengths")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    add_run_options(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.getLogger("sparsepo").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="(transformers|torch).*")
    ragged = ", lengths from half of those to all of them" if args.ragged else ""
    setting = (
        f"{args.pairs} pairs{ragged}, {args.layers} layers × {args.hidden}, {args.dtype}, "
        f"{machine(args.device)}{clock_note(args.clock)}"
    )
    results = Results(args.output, setting, f"python benchmarks/prefix.py {' '.join(sys.argv[1:])}", table, args.fresh)
    for model_type in args.types:
        for shape in args.shapes:
            for checkpointing in args.checkpointing:
                key = f"{model_type} {shape} checkpointing {checkpointing}"
                if results.holds(key, args.rounds):
                    continue
                rows = measure(args, model_type, shape, checkpointing == "on")
                found = {"type": model_type, "shape": shape, "checkpointing": checkpointing, "rounds": args.rounds}
                results.add(key, {**found, "rows": rows})
    print(results.text())


if __name__ == "__main__":
    main()
