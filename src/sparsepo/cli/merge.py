"""``sparsepo merge``: a LoRA adapter merged into its base model, a plain model with the mask beside it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from .base import CliError

_KEPT = ("mask", "sparsepo.json", "train_summary.json")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``merge``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "merge",
        help="merge a LoRA adapter into its base model, the mask kept",
        description="Write a plain Hugging Face model from a saved adapter and its base model. The mask and the settings "
        "beside the adapter are copied along.",
    )
    parser.add_argument("adapter", help="folder of the adapter, as `sparsepo train --use_peft` saves it")
    parser.add_argument("output", help="folder of the merged model; must not hold a model yet")
    parser.add_argument("--base_model", help="base model instead of the one that the adapter names")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of the merged weights"
    )
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Merge and save. Returns 0."""
    from rich.console import Console

    from .models import is_adapter, load_adapter

    output = Path(args.output)
    if not is_adapter(args.adapter):
        raise CliError(f"{args.adapter} is no adapter folder (no adapter_config.json); a whole model needs no merging.")
    if (output / "config.json").exists() or (output / "adapter_config.json").exists():
        raise CliError(f"{output} holds a model already; give another folder.")
    from transformers import AutoTokenizer

    peft_model = load_adapter(args.adapter, {"dtype": args.dtype}, trainable=False, base=args.base_model)
    merged = peft_model.merge_and_unload()
    merged.save_pretrained(output)
    AutoTokenizer.from_pretrained(args.adapter).save_pretrained(output)
    for name in _KEPT:
        source = Path(args.adapter) / name
        if source.is_dir():
            shutil.copytree(source, output / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, output / name)
    Console().print(f"Merged into {output}", highlight=False, markup=False)
    return 0
