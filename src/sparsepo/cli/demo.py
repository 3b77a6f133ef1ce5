"""``sparsepo demo``: the whole method on an offline sentiment world, in a few minutes on a CPU."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from .base import INTERRUPTED

if TYPE_CHECKING:
    from sparsepo.playground.demo import TrainedPolicy, TrainingRequest
    from sparsepo.training import SparsePOConfig

# TRL and torch are slow to import: the objective's names are repeated here (a test compares them)
OBJECTIVES = ("sparsepo", "mapo", "tdpo1", "tdpo2", "dpo", "simpo", "dpop")  # a test keeps them equal to the registry


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``demo``; the namespace's ``func`` runs it and returns the exit code."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        allow_abbrev=False,
        help="train a small model offline and look at its masks (a few minutes on a CPU)",
        description="Train a small model on a made-up world of reviews whose decisive words are known, sample preference "
        "pairs from it, train it on them, and show what changed and which tokens the masks chose. Needs no network.",
    )
    parser.add_argument(
        "--output_dir",
        default="sparsepo-demo",
        help="folder of the trained model and of demo.json (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of texts, samples and training (default: %(default)s)"
    )
    parser.add_argument(
        "--objective", default="sparsepo", choices=OBJECTIVES, help="what to train with (default: %(default)s)"
    )
    parser.add_argument("--fast", action="store_true", help="run every stage in a few seconds; nothing is learned well")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns 0, or 130 when interrupted."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, so nothing should be waited for
    from rich.console import Console

    console = Console()
    try:
        if not console.is_terminal:
            console.print("loading libraries …")
        with console.status("loading libraries …"):
            _load_libraries()
        from sparsepo.playground.demo import DemoSettings, run_demo

        settings = DemoSettings(objective=args.objective, seed=args.seed)
        run_demo(args.output_dir, train_preferences, settings.fast() if args.fast else settings, console)
    except KeyboardInterrupt:
        console.print(
            f"\n[yellow]Interrupted.[/] {args.output_dir} may hold an unfinished run; start again to replace it."
        )
        return INTERRUPTED
    return 0


def _load_libraries() -> None:
    """Import what takes seconds, all at once, so that no stage seems slower than it is."""
    from sparsepo.compatibility import check_versions

    check_versions()
    from trl import SFTTrainer  # noqa: F401

    import sparsepo.training  # noqa: F401


def train_preferences(request: TrainingRequest) -> TrainedPolicy:
    """Train with :class:`SparsePOTrainer`, save, and score the evaluation pairs."""
    from datasets import Dataset

    from sparsepo.playground.demo import TrainedPolicy
    from sparsepo.playground.models import ProgressCallback, quieten
    from sparsepo.training import SparsePOTrainer

    columns = ("prompt", "chosen", "rejected")
    train, held_out = (
        Dataset.from_list([{name: row[name] for name in columns} for row in rows])
        for rows in (request.train_rows, request.eval_rows)
    )
    trainer = SparsePOTrainer(
        model=request.model,
        ref_model=request.reference,
        args=_config(request),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=request.tokenizer,
    )
    quieten(trainer)
    progress = ProgressCallback(request.on_step)
    trainer.add_callback(progress)
    trainer.train()
    trainer.save_model(str(request.output_dir))
    batches = [dict(batch) for batch in trainer.get_eval_dataloader()]
    return TrainedPolicy(scored=[(batch, trainer.score(batch)) for batch in batches], log=dict(progress.latest))


def _config(request: TrainingRequest) -> SparsePOConfig:
    from sparsepo.training import SparsePOConfig

    s = request.settings
    own: dict[str, Any] = {}
    if s.objective != "simpo":  # its β is of another kind: left at its own default
        own["beta"] = s.beta
    if s.objective == "sparsepo":
        own["mask_target_sparsity"] = s.mask_target_sparsity
    return SparsePOConfig(
        output_dir=str(request.output_dir),
        objective=s.objective,
        kl_anchor=s.kl_anchor,
        learning_rate=s.learning_rate,
        max_steps=s.steps,
        per_device_train_batch_size=s.batch_size,
        per_device_eval_batch_size=32,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        gradient_checkpointing=False,
        bf16=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=5,
        report_to="none",
        disable_tqdm=True,
        seed=s.seed,
        **own,
    )
