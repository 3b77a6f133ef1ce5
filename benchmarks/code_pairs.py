"""Preference pairs of programs: a reference solution against itself with one small change.

    python benchmarks/code_pairs.py mbpp_sanitized.jsonl.gz --output code.jsonl --eval_fraction 0.15

A row a pair, ``prompt`` the task, ``chosen`` the solution, ``rejected`` a mutant, ``span`` the place of the change in it.
Nothing is executed: that a mutant fails its tests is likely, not shown.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.mutations import choose, mutants_of


def pairs_of(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Up to ``count`` pairs a task."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rows:
        prompt = f"{row['text'].strip()}\n{row['test_list'][0].strip()}\n"
        code = row["code"].replace("\r\n", "\n").strip() + "\n"
        for mutant in choose(mutants_of(code), rng, count):
            pair = {"prompt": prompt, "chosen": code, "rejected": mutant.code, "span": list(mutant.span)}
            found.append({**pair, "before": mutant.before, "after": mutant.after})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", help="MBPP's sanitized tasks, .jsonl or .jsonl.gz")
    parser.add_argument("--output", required=True)
    parser.add_argument("--eval_fraction", type=float, default=0.15)
    parser.add_argument("--pairs", type=int, default=4, help="of a task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    raw = Path(args.tasks).read_bytes()
    text = (gzip.decompress(raw) if args.tasks.endswith(".gz") else raw).decode("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    held_out = round(args.eval_fraction * len(rows))
    for part, path in (
        (rows[held_out:], args.output),
        (rows[:held_out], str(Path(args.output).with_suffix(".eval.jsonl"))),
    ):
        pairs = pairs_of(part, args.pairs, args.seed)
        Path(path).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        print(f"{len(pairs)} pairs of {len(part)} tasks in {path}")


if __name__ == "__main__":
    main()
