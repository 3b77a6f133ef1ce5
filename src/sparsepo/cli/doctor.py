"""``sparsepo doctor``: what is installed and in range, which devices are there, what is missing and what that disables."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .base import RUN_ERROR

GIB = 1 << 30
LEAST_DISK = 20  # GiB of the hub's cache under which a model of some billion parameters does not fit

# distribution → (what does without it or does not work, what to install)
OPTIONAL = {
    "triton": ("rows of logits by Triton kernels on CUDA (plain torch does the same, slower)", "sparsepo[kernels]"),
    "bitsandbytes": ("--load_in_4bit, --load_in_8bit (QLoRA), --optim adamw_bnb_8bit", "bitsandbytes"),
    "deepspeed": ("--accelerate_config zero1, zero2, zero3", "deepspeed>=0.18.6"),
    "flash-attn": ("--attn_implementation flash_attention_2 (sdpa needs nothing)", "flash-attn"),
    "openai": ("judges and samplers behind a server that speaks OpenAI's protocol", "sparsepo[judge]"),
    "lm-eval": ("Open LLM Leaderboard tasks", "sparsepo[reasoning]"),
    "rouge-score": ("ROUGE of summaries", "sparsepo[summaries]"),
    "sacrebleu": ("self-BLEU of summaries", "sparsepo[summaries]"),
    "bert-score": ("BERTScore of summaries", "sparsepo[summaries]"),
    "tensorboard": ("--report_to tensorboard", "tensorboard"),
    "wandb": ("--report_to wandb", "wandb"),
}


@dataclass
class Report:
    """What was found. ``problems`` are what must be mended, ``remarks`` what is worth knowing."""

    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    optional: dict[str, dict[str, Any]] = field(default_factory=dict)
    cuda: str | None = None  # the version that torch is built for
    devices: list[dict[str, Any]] = field(default_factory=list)
    kernels: dict[str, Any] = field(default_factory=dict)
    disk: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``doctor``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="versions, devices, what is missing and what that disables",
        description="Look at this installation: versions and whether they are in range, devices and their memory, optional "
        "libraries and what does not work without them, Triton kernels, disk of the hub's cache. Status 1 if something "
        "that is needed is missing or of a wrong version.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON instead")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Look, print. Returns 1 if something needed is wrong, else 0."""
    report = examine()
    if args.json:
        print(json.dumps(asdict(report) | {"ok": not report.problems}, indent=1))
    else:
        _print(report)
    return RUN_ERROR if report.problems else 0


def examine() -> Report:
    """Everything that the command shows."""
    report = Report()
    _look_at_versions(report)
    _look_at_optional(report)
    _look_at_devices(report)
    _look_at_imports(report)
    _look_at_disk(report)
    return report


def _look_at_versions(report: Report) -> None:
    import platform
    import sys

    from sparsepo import __version__
    from sparsepo.compatibility import finding, requirements

    report.versions["sparsepo"] = {"found": __version__, "wanted": "", "ok": True}
    python_ok = sys.version_info >= (3, 11)
    report.versions["Python"] = {"found": platform.python_version(), "wanted": ">=3.11", "ok": python_ok}
    if not python_ok:
        report.problems.append(f"Python {platform.python_version()} is older than 3.11, which TRL 1.16 needs.")
    for found in map(finding, requirements()):
        report.versions[found.name] = {"found": found.found, "wanted": found.wanted, "ok": found.is_right}
        if not found.is_right:
            report.problems.append(f"sparsepo {found.problem()}: {found.mend}")


def _look_at_optional(report: Report) -> None:
    from sparsepo.compatibility import installed

    for name, (disabled, source) in OPTIONAL.items():
        version = installed(name)
        entry: dict[str, Any] = {"found": version}
        if version is None:
            entry |= {"disables": disabled, "mend": f"pip install '{source}'"}
        report.optional[name] = entry


def _look_at_devices(report: Report) -> None:
    try:
        import torch
    except Exception as error:  # a broken build raises anything; the other findings are still worth having
        report.problems.append(f"torch cannot be imported ({_one_line(error)}): install it anew, `pip install torch`.")
        return
    report.cuda = torch.version.cuda
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        properties = torch.cuda.get_device_properties(number)
        report.devices.append(
            {"device": f"cuda:{number}", "name": properties.name, "memory_gib": round(total / GIB, 1),
             "free_gib": round(free / GIB, 1), "bf16": torch.cuda.is_bf16_supported()}
        )  # fmt: skip
    if torch.backends.mps.is_available():
        report.devices.append({"device": "mps", "name": "Apple GPU"})
    report.devices.append(_processor())
    if torch.version.cuda is not None and not torch.cuda.is_available():
        report.remarks.append("This torch is built for CUDA, but no CUDA device answers: look at nvidia-smi.")
    if len(report.devices) == 1:
        report.remarks.append("No accelerator: models of more than some ten million parameters will train slowly.")
    _look_at_kernels(report, "cuda" if torch.cuda.is_available() else "cpu")


def _processor() -> dict[str, Any]:
    import torch

    try:
        import psutil

        memory = psutil.virtual_memory()
        sizes = {"memory_gib": round(memory.total / GIB, 1), "free_gib": round(memory.available / GIB, 1)}
    except ImportError:
        sizes = {}
    return {"device": "cpu", "name": f"{os.cpu_count()} processors, torch uses {torch.get_num_threads()}", **sizes}


def _look_at_kernels(report: Report, device: str) -> None:
    """Whether rows of logits go through Triton, tried on a few numbers."""
    from sparsepo.scoring import triton_rows

    reason = triton_rows._why_not(triton_rows.torch.device(device))
    report.kernels = {"device": device, "usable": not reason, "reason": reason}
    if reason and device == "cuda":
        report.remarks.append(f"Triton kernels are not used ({reason}): scoring falls back to torch.")


def _look_at_imports(report: Report) -> None:
    """Right versions may still not import: a broken build, a clash between libraries."""
    if report.problems:
        return
    try:
        import sparsepo.training  # noqa: F401
    except Exception as error:  # whatever it is, it is what a run would die of
        report.problems.append(f"sparsepo.training cannot be imported: {_one_line(error)}")


def _look_at_disk(report: Report) -> None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / GIB
    writable = os.access(existing, os.W_OK)
    report.disk = {"HF_HOME": str(home), "free_gib": round(free, 1), "writable": writable}
    if not writable:
        report.remarks.append(f"{existing} cannot be written: set HF_HOME to a folder of yours to download models.")
    elif free < LEAST_DISK:
        report.remarks.append(f"{free:.0f} GiB are free for the hub's cache ({home}): set HF_HOME to a larger disk.")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _print(report: Report) -> None:
    from rich.console import Console

    from .tables import say, text_table

    console = Console()
    rows = [
        [
            name,
            entry["found"] or "none",
            entry["wanted"] or ("" if name == "sparsepo" else "any"),
            "yes" if entry["ok"] else "NO",
        ]
        for name, entry in report.versions.items()
    ]
    console.print(text_table("Needed", ("library", "found", "accepted", "in range"), rows))
    there = [f"{name} {entry['found']}" for name, entry in report.optional.items() if entry["found"]]
    say(console, f"Optional, installed: {', '.join(there) or 'none'}")
    for name, entry in report.optional.items():  # lines, not a table: its cells would break the commands
        if not entry["found"]:
            say(console, f"Optional, not installed: {name}; without it no {entry['disables']}: {entry['mend']}")
    if report.devices:  # torch could be asked
        say(console, f"torch is {'a build without CUDA' if report.cuda is None else f'built for CUDA {report.cuda}'}")
    for device in report.devices:
        memory = f", {device['memory_gib']} GiB, {device['free_gib']} free" if "memory_gib" in device else ""
        half = "" if device.get("bf16", True) else ", no bfloat16"
        say(console, f"{device['device']}: {device['name']}{memory}{half}")
    if report.kernels:
        why = f"not used on {report.kernels['device']}, torch does the same: {report.kernels['reason']}"
        say(console, f"Triton kernels: {'used' if report.kernels['usable'] else why}")
    say(console, f"Hub cache: {report.disk['HF_HOME']}, {report.disk['free_gib']} GiB free")
    for remark in report.remarks:
        say(console, f"Note: {remark}")
    for problem in report.problems:
        say(console, f"Problem: {problem}")
    if report.problems:
        say(console, f"{len(report.problems)} problem(s): what is named above must be mended before a run.")
    else:
        say(console, "Everything needed is there. To try it: `sparsepo demo --fast`")
