"""Collecting every number of many pairs: time, and memory while the pairs go by.

    python benchmarks/inspection.py --pairs 1000 --threads 2 --output benchmarks/results/inspection

Policy and reference of GPT-2 small's sizes with random weights, a learned mask on the reference's hidden states, random
tokens; the records go to Parquet and to the statistics while they come, as in `sparsepo inspect --summary --output`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine

from sparsepo import SparsePOConfig, SparsePOTrainer

GPT2_SMALL = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}
MEBI = 2**20


def rss() -> float:
    """Resident memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS: this benchmark runs on Linux.")


def tokenizer() -> Any:
    """A tokenizer with a name for every id; its texts are of no meaning."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(GPT2_SMALL["vocab_size"] - 1)} | {"<|endoftext|>": 50256}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def rows(count: int, prompt: int, response: int) -> Any:
    """Pairs of random words, so many tokens each (the response's last is the end of the sequence)."""
    from datasets import Dataset

    rng = random.Random(0)

    def words(length: int) -> str:
        return " ".join(f"w{rng.randrange(50000)}" for _ in range(length))

    return Dataset.from_list(
        [
            {"prompt": words(prompt) + " ", "chosen": words(response - 1), "rejected": words(response - 1)}
            for _ in range(count)
        ]
    )


def build(args: argparse.Namespace, folder: str) -> SparsePOTrainer:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    policy, reference = (GPT2LMHeadModel(GPT2Config(**GPT2_SMALL)) for _ in range(2))
    data = rows(args.pairs, args.prompt, args.response)
    config = SparsePOConfig(
        folder,
        per_device_eval_batch_size=args.batch_size,
        max_length=args.prompt + args.response,
        report_to="none",
        save_strategy="no",
        bf16=False,
        dataloader_pin_memory=False,
    )
    return SparsePOTrainer(
        policy, reference, config, train_dataset=data, eval_dataset=data, processing_class=tokenizer()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens of each side, its end among them")
    parser.add_argument("--batch_size", type=int, default=4, help="pairs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    from rich.progress import track

    from sparsepo.inspection import RecordWriter, collect
    from sparsepo.inspection.statistics import Statistics

    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args, folder)
        statistics = Statistics()
        batches = trainer.get_eval_dataloader()
        records = collect(batches, trainer.score, trainer.objective, trainer.processing_class)
        seen: list[tuple[int, float, float]] = []
        tokens = 0
        start = time.perf_counter()
        with RecordWriter(Path(folder) / "tokens.parquet") as writer:
            for number, record in enumerate(track(records, "scoring pairs", total=args.pairs), 1):
                writer.add(record)
                statistics.add(record)
                tokens += len(record.chosen) + len(record.rejected)
                if number % max(1, args.pairs // 10) == 0:
                    seen.append((number, time.perf_counter() - start, rss()))
        size = (Path(folder) / "tokens.parquet").stat().st_size / MEBI
        summary = statistics.summary()
    lines = [
        f"`python benchmarks/inspection.py --pairs {args.pairs} --prompt {args.prompt} --response {args.response} "
        f"--batch_size {args.batch_size} --threads {args.threads}`\n",
        f"{machine()}, {args.threads} threads. {summary['pairs']:,} pairs, {tokens:,} response tokens in one pass; "
        f"tokens.parquet {size:.1f} MiB.\n",
        "| pairs done | seconds | seconds a pair since the last row | memory of the process, MiB |",
        "|---|---|---|---|",
    ]
    before = (0, 0.0, 0.0)
    for number, seconds, memory in seen:
        lines.append(
            f"| {number:,} | {seconds:.0f} | {(seconds - before[1]) / (number - before[0]):.2f} | {memory:,.0f} |"
        )
        before = (number, seconds, memory)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        Path(args.output).with_suffix(".md").write_text(f"# Collecting records\n\n{text}", encoding="utf-8")
        content = {"arguments": vars(args), "machine": machine(), "seen": seen, "parquet_mib": size, "tokens": tokens}
        Path(args.output).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
