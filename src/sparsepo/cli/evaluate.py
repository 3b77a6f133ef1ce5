"""``sparsepo evaluate``: all training metrics of a saved model on held-out pairs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .base import CliError
from .saved_runs import add_flags, config_of, pairs_of, reference_name, saved_settings, trainer_of


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``evaluate``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "evaluate",
        help="all training metrics of a saved model on held-out pairs",
        description="Loss, rewards, KL and mask statistics of a saved model on preference pairs. A folder that "
        "`sparsepo train` wrote brings objective, mask and the name of its reference along; for any other model the "
        "objective is dpo unless given.",
    )
    parser.add_argument("model", help="folder of a model or adapter, or hub id")
    parser.add_argument("data", help="file, folder or hub id of preference pairs")
    add_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write all numbers there as well")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate and print. Returns 0."""
    from rich.console import Console

    from .models import check_model_name, fit_length, load_tokenizer, positions_of
    from .progress import quiet_settings

    if args.json is not None and not Path(args.json).expanduser().parent.is_dir():
        raise CliError(f"--json {args.json}: there is no folder {Path(args.json).parent}.")
    console = Console()
    name = check_model_name(args.model, "MODEL")
    saved = saved_settings(name)
    config = config_of(args, saved)
    quiet_settings(config, set())
    fit_length(config, positions_of(name, args.trust_remote_code), console)
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    dataset, report = pairs_of(args, config, tokenizer)
    report.print(console)
    trainer = trainer_of(args, name, saved, config, dataset, tokenizer)
    metrics = _without_prefix(trainer.evaluate())
    result = {
        "model": args.model,
        "data": args.data,
        "reference": reference_name(args, name, saved),
        "objective": {"name": trainer.objective.name, **trainer.objective.settings()},
        "mask": None if trainer.masker is None else {"kind": trainer.masker.kind, **trainer.masker.settings()},
        "pairs": len(dataset),
        "metrics": metrics,
    }
    _show(result, console)
    if args.json is not None:
        Path(args.json).expanduser().write_text(
            json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return 0


def _without_prefix(metrics: dict[str, Any]) -> dict[str, float]:
    from .tables import finite, without_prefix

    return finite(without_prefix(metrics))


def _show(result: dict[str, Any], console: Any) -> None:
    from .tables import metrics_table, say

    objective = result["objective"]
    settings = ", ".join(f"{name} {value}" for name, value in objective.items() if name != "name" and value)
    say(console, f"objective {objective['name']} ({settings}); reference {result['reference'] or 'none'}")
    speed = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    metrics = {name: value for name, value in result["metrics"].items() if name not in speed}
    console.print(metrics_table(f"{result['model']} on {result['pairs']} pairs", {"value": metrics}, everything=True))
