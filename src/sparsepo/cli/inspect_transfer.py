"""``sparsepo inspect transfer``: does a mask of model A choose the same text in model B, and can B be trained with it?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .base import CliError
from .inspect import inspected
from .saved_runs import add_flags, check_output_folder


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``inspect transfer``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect transfer",
        help="a mask of one model at another model's tokens",
        description="Masks of model A are carried over to model B's tokens by the characters that they stand at, and "
        "compared with B's own masks, beside controls. With --export A's masks become columns of the data, with which any "
        "model can be trained (mask: data).",
    )
    parser.add_argument("a", metavar="A", help="model whose masks are carried over: folder or hub id")
    parser.add_argument("b", metavar="B", nargs="?", help="model to compare with; left out with --export alone")
    parser.add_argument("data", metavar="DATA", help="file, folder or hub id of preference pairs")
    parser.add_argument("--output", metavar="FOLDER", help="write transfer.html, transfer.json and plots/ there")
    parser.add_argument(
        "--export", metavar="FILE", help="write the pairs with A's masks as weights by character (.jsonl)"
    )
    parser.add_argument(
        "--mask", choices=("reward_mask", "kl_mask"), default="reward_mask", help="which mask (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="read only so many pairs")
    add_flags(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Compare and export. Returns 0."""
    from rich.console import Console

    _check(args)
    console = Console()
    trainer, dataset = inspected(args, args.a, console)
    a = _records(trainer, len(dataset), f"A: {args.a}", console)
    if not a or a[0].chosen.values(args.mask) is None:
        raise CliError(f"A: {args.a} has no {args.mask}; its objective is {trainer.objective.display_name}.")
    if args.export is not None:
        _export(args, dataset, a, console)
    if args.b is not None:
        del trainer
        trainer, dataset = inspected(args, args.b, console)
        _compare(args, a, _records(trainer, len(dataset), f"B: {args.b}", console), console)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.b is None and args.export is None:
        raise CliError("Give model B to compare with, or --export FILE, or both.")
    if args.b is None and args.output is not None:
        raise CliError("--output has no effect without model B; --export FILE writes the data.")
    if args.export is not None and Path(args.export).suffix != ".jsonl":
        raise CliError(f"--export {args.export}: must end in .jsonl.")
    if args.limit is not None and args.limit < 1:
        raise CliError(f"--limit {args.limit}: must be at least 1.")
    check_output_folder(args.output)


def _records(trainer: Any, count: int, text: str, console: Any) -> list[Any]:
    from rich.progress import track

    from sparsepo.inspection import collect

    batches = trainer.get_eval_dataloader()
    records = collect(batches, trainer.score, trainer.objective, trainer.processing_class)
    return list(track(records, text, total=count, console=console, disable=not console.is_terminal))


def _compare(args: argparse.Namespace, a: list[Any], b: list[Any], console: Any) -> None:
    from sparsepo.inspection.transfer import Transfer, table, write_transfer

    from .tables import say, text_table

    transfer = Transfer(a, args.mask)
    transfer.compare(b)
    summary = transfer.summary()
    console.print(text_table(f"{args.a} → {args.b}", *table(summary)))
    for reason, count in summary["skipped"].items():
        say(console, f"{count:,} left out: {reason}")
    if args.output is not None:
        folder = Path(args.output).expanduser()
        write_transfer(summary, folder, args.a, args.b)
        say(console, f"wrote {folder / 'transfer.html'}, transfer.json and plots/")


def _export(args: argparse.Namespace, dataset: Any, records: list[Any], console: Any) -> None:
    from sparsepo.inspection.document import write_whole
    from sparsepo.inspection.transfer import weighted_rows

    from .tables import say

    found = list(weighted_rows(dataset, records, args.mask))
    kept = [row for row in found if row is not None]
    if not kept:
        raise CliError("--export: no row could be aligned with its tokens; the tokenizer changes the text.")
    # lone surrogates are written as escapes, as JSON allows
    lines = [json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=True) for row in kept]
    write_whole(Path(args.export).expanduser(), "\n".join(lines) + "\n")
    say(console, f"wrote {args.export} ({len(kept):,} pairs with weights by character): train with mask: data")
    if len(kept) < len(found):
        say(console, f"{len(found) - len(kept):,} left out: the tokenizer changes their text")
