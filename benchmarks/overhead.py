"""What watching costs: the share of a training step that metrics, mask statistics, callbacks, logs and checks take.

Everything runs in one process on a CPU, where nothing overlaps: the seconds inside each part are counted while whole steps
run, so that no difference of two noisy times is needed. A part's seconds include all that it calls.

    python benchmarks/overhead.py --output benchmarks/results/overhead
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from sparsepo import SparsePOConfig, SparsePOTrainer
from tests.support import tiny_tokenizer

# what is counted: name → methods of the trainer (or of an attribute of it)
PARTS = {
    "metrics and mask statistics": ("_collect",),
    "log": ("log",),
    "callbacks": ("callback_handler.call_event",),
    "check for numbers that are not finite": ("_local_flags", "_take_flags"),
}


class Counted:
    """Seconds of the processor inside named parts; of nested ones the outer counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = False

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, began = True, time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - began
                self._inside = False

        return counted


def rows_of(length: int, count: int) -> Dataset:
    """Pairs of so many tokens a response."""
    words = ["good", "bad", "film", "story", "warm", "cold"]
    text = [" ".join(words[(i * j + i) % 6] for i in range(length)) for j in range(1, 2 * count + 1)]
    return Dataset.from_list(
        [
            {"prompt": "the film was", "chosen": " " + text[2 * i], "rejected": " " + text[2 * i + 1]}
            for i in range(count)
        ]
    )


def measure(args: argparse.Namespace, logging_steps: int) -> dict[str, list[float]]:
    """Seconds of each part, and of the step, by step."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=args.vocabulary, n_embd=args.width, n_layer=args.layers, n_head=8, n_positions=args.length + 32
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SparsePOConfig(
            folder,
            max_steps=args.steps + 2,
            per_device_train_batch_size=args.pairs,
            logging_steps=logging_steps,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            activation_checkpointing=False,
            mask_target_sparsity=0.5,
            max_length=None,
        )
        trainer = SparsePOTrainer(
            GPT2LMHeadModel(config),
            args=settings,
            train_dataset=rows_of(args.length, 4 * args.pairs),
            processing_class=tiny_tokenizer(),
        )
        counted, found = Counted(), defaultdict[str, list[float]](list)
        for name, methods in PARTS.items():
            for method in methods:
                owner, _, attribute = method.rpartition(".")
                holder = getattr(trainer, owner) if owner else trainer
                setattr(holder, attribute, counted.wrap(name, getattr(holder, attribute)))
        _note_steps(trainer, counted, found)
        with contextlib.redirect_stdout(None):
            trainer.train()
    return {name: values[2:] for name, values in found.items()}


def _note_steps(trainer: Any, counted: Counted, found: dict[str, list[float]]) -> None:
    """Cut the count where Trainer asks for the next batches."""
    original, began = trainer.get_batch_samples, [time.process_time()]

    def next_step(*args: Any, **kwargs: Any) -> Any:
        now = time.process_time()
        found["step"].append(now - began[0])
        for name in PARTS:
            found[name].append(counted.seconds[name])
        counted.seconds.clear()
        began[0] = now
        return original(*args, **kwargs)

    trainer.get_batch_samples = next_step


def table(args: argparse.Namespace) -> str:
    """Markdown: a column for steps that log and for steps that log every tenth."""
    columns = {f"logging_steps={every}": measure(args, every) for every in (1, 10)}
    lines = [
        f"GPT-2 of width {args.width}, {args.layers} layers, vocabulary {args.vocabulary:,}; {args.pairs} pairs of "
        f"{args.length} tokens a response; {args.steps} steps; {machine()}; seconds of the processor.",
        "",
        f"| share of a step, % | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in (*PARTS, "all of these"):
        names = PARTS if name == "all of these" else (name,)
        shares = []
        for found in columns.values():
            total = sum(found["step"])
            shares.append(f"{100 * sum(sum(found[part]) for part in names) / total:.2f}")
        lines.append(f"| {name} | {' | '.join(shares)} |")
    medians = (f"{statistics.median(found['step']):.3f}" for found in columns.values())
    lines.append(f"| a step, s (median) | {' | '.join(medians)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--length", type=int, default=128, help="tokens of a response")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="write OUTPUT.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = table(args)
    print(found)
    if args.output:
        Path(f"{args.output}.md").write_text(f"# What watching costs\n\n{found}", encoding="utf-8")


if __name__ == "__main__":
    main()
