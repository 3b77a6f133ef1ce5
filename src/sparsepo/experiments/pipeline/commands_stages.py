"""Stages that run a command: supervised training, and a run's preference training."""

from __future__ import annotations

import json
import shutil
from typing import Any

from .jobs import MODEL, Job, Row

# evaluation metric of `sparsepo train` → its name in the results
METRICS = {
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "loss": "loss",
    "kl/chosen": "kl_chosen",
    "kl/rejected": "kl_rejected",
    "kl_masked/chosen": "masked_kl_chosen",
    "kl_masked/rejected": "masked_kl_rejected",
    "mask/reward/sparsity": "reward_mask_zeros",
    "mask/kl/sparsity": "kl_mask_zeros",
    "mask/reward/mean": "reward_mask_mean",
    "mask/kl/mean": "kl_mask_mean",
    "mask/effective_beta": "effective_beta",
}


def supervised(job: Job) -> Row:
    """``sparsepo sft`` on the texts of the data stage and on further files; an adapter is merged into its base."""
    own = dict(job.settings["flags"])
    texts = [str(job.inputs["data"] / "sft.jsonl")] if job.results.get("data", {}).get("sft_texts") else []
    texts += job.stage.sources.get("texts", [])
    if texts:
        own["text_files"] = texts
    target = job.folder / ("adapter" if own.get("use_peft") else MODEL)
    _run(job, "sft", own | {"output_dir": str(target), "seed": job.settings["seed"]})
    if own.get("use_peft"):
        shutil.rmtree(job.folder / MODEL, ignore_errors=True)  # what an interrupted merge left
        job.commands.merge(target, job.folder / MODEL)
    summary = _summary(job, target)
    loss = summary["metrics"].get("evaluation", {}).get("loss")
    told = f"{summary['steps']} steps" + ("" if loss is None else f", evaluation loss {loss:.3f}")
    return {"metrics": summary["metrics"], "steps": summary["steps"], "summary": told}


def preference(job: Job) -> Row:
    """``sparsepo train`` on the pairs, judged on the held-out ones."""
    own = {
        **job.settings["flags"],
        "model_name_or_path": job.model(),
        "dataset_name": str(job.inputs["pairs"] / "train.jsonl"),
        "eval_dataset": str(job.inputs["pairs"] / "held_out.jsonl"),
        "output_dir": str(job.folder / MODEL),
        "seed": job.settings["seed"],
    }
    _run(job, "train", own)
    summary = _summary(job, job.folder / MODEL)
    found = summary["metrics"]["evaluation"]
    metrics = {name: found[metric] for metric, name in METRICS.items() if metric in found}
    health = job.folder / MODEL / "mask_health.json"
    told = f"held-out accuracy {metrics['reward_accuracy']:.3f}, margin {metrics['reward_margin']:.3f}"
    active = (
        sorted({finding["name"] for finding in json.loads(health.read_text(encoding="utf-8"))["active"]})
        if health.is_file()
        else []
    )
    return {
        "metrics": metrics,
        "steps": summary["steps"],
        "train_seconds": summary["seconds"],
        "mask_findings": active,
        "summary": told + (f", masks: {' '.join(active)}" if active else ""),
    }


def _run(job: Job, command: str, settings: dict[str, Any]) -> None:
    """Go on from a checkpoint where an interrupted attempt left one, else begin anew."""
    settings |= {"resume_from_checkpoint": "auto", "overwrite_output_dir": True}
    job.commands.run(command, settings, job.folder / f"{command}.yaml")


def _summary(job: Job, model: Any) -> Row:
    content: Row = json.loads((model / "train_summary.json").read_text(encoding="utf-8"))
    for checkpoint in model.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # only to resume from; the model is saved
    return content
