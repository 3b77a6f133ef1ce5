"""Every method on real preference pairs, several seeds: a table of held-out metrics.

    python benchmarks/real_text.py --model SFT --data imdb=TRAIN.jsonl:EVAL.jsonl --output runs/real_text

Runs `sparsepo train` once a data set, method and seed (the seed orders the pairs and draws the mask head's start), skips
runs that are done, and writes OUTPUT/table.md and OUTPUT/table.json: mean and standard deviation over seeds of the
evaluation metrics. Interrupt it and start it again: it goes on. docs/results/real_text.md holds a run of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

METHODS: dict[str, list[str]] = {
    "DPO": ["--objective", "dpo"],
    "TDPO1": ["--objective", "tdpo1"],
    "MaPO": ["--objective", "mapo"],
    "SparsePO common": ["--mask_sharing", "common"],
    "SparsePO independent": ["--mask_sharing", "independent"],
    "SparsePO common, L1": ["--mask_sharing", "common", "--mask_l1_reward", "0.01", "--mask_learning_rate", "0.003"],
}
# name in the summary → heading
COLUMNS = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "margin",
    "kl/chosen": "KL chosen",
    "kl/rejected": "KL rejected",
    "kl_masked/chosen": "masked KL chosen",
    "mask/reward/mean": "mean m_u",
    "mask/reward/sparsity": "zeros in m_u",
    "mask/kl/sparsity": "zeros in m_d",
}


def run_one(args: argparse.Namespace, name: str, files: str, method: str, seed: int) -> dict[str, float]:
    """Train one run unless it is done; returns its evaluation metrics."""
    train, evaluation = files.split(":")
    slug = method.lower().replace(",", "").replace(" ", "-")
    folder = Path(args.output) / name / f"{slug}-seed{seed}"
    summary = folder / "train_summary.json"
    if not summary.is_file():
        command = ["sparsepo", "train", "--model_name_or_path", args.model, "--dataset_name", train]
        command += ["--eval_dataset", evaluation, "--output_dir", str(folder), "--overwrite_output_dir"]
        command += METHODS[method]
        command += ["--beta", str(args.beta), "--learning_rate", str(args.learning_rate), "--seed", str(seed)]
        command += ["--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "16"]
        command += ["--max_length", str(args.max_length), "--max_prompt_length", str(args.max_length // 2)]
        command += ["--max_steps", str(args.steps), "--lr_scheduler_type", "cosine", "--warmup_steps", "0.1"]
        command += ["--gradient_checkpointing", "false", "--save_strategy", "no", "--report_to", "none"]
        print("$", " ".join(command), flush=True)
        subprocess.run(command, check=True)
    content = json.loads(summary.read_text())
    return {key.removeprefix("eval_"): value for key, value in content["metrics"]["evaluation"].items()}


def cell(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def write_table(args: argparse.Namespace, results: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Markdown and JSON of what is done so far."""
    lines = []
    for name, methods in results.items():
        lines += [
            "",
            f"### {name}",
            "",
            "| method | " + " | ".join(COLUMNS.values()) + " |",
            "|---" * (len(COLUMNS) + 1) + "|",
        ]
        for method, runs in methods.items():
            cells = [cell([run[key] for run in runs]) if all(key in run for run in runs) else "–" for key in COLUMNS]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    Path(args.output, "table.md").write_text("\n".join(lines).lstrip("\n") + "\n")
    Path(args.output, "table.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SFT model: the start and the reference of every run")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=TRAIN:EVAL")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--max_length", type=int, default=192)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed_index, seed in enumerate(
        args.seeds
    ):  # all methods of a seed before the next: a stopped run still compares
        for entry in args.data:
            name, files = entry.split("=", 1)
            for method in args.methods:
                runs = results.setdefault(name, {}).setdefault(method, [])
                assert len(runs) == seed_index
                runs.append(run_one(args, name, files, method, seed))
            write_table(args, results)
    print(Path(args.output, "table.md").read_text())


if __name__ == "__main__":
    main()
