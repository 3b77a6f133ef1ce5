"""``sparsepo inspect compare``: masks of several runs or tasks side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .content_flags import add_content_flags, content_filter_of
from .saved_runs import check_output_folder


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``inspect compare``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect compare",
        help="masks of several runs or tasks side by side",
        description="Reads what `sparsepo inspect --output` wrote for several runs, or for one run on several tasks: where "
        "the pairs are the same, how far the masks agree token by token; zeros, means, positions and token classes beside "
        "one another.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="NAME=PATH",
        help="folder or tokens.parquet of an inspection; the name may be left out",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="write compare.html, pairs.html, compare.json and plots/ there"
    )
    parser.add_argument(
        "--mask",
        choices=("reward_mask", "kl_mask"),
        default="reward_mask",
        help="whose agreement (default: %(default)s)",
    )
    parser.add_argument("--language", help="responses are code in this language, such as python")
    add_content_flags(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Compare. Returns 0."""
    from rich.console import Console

    from sparsepo.inspection.compare import agreement_rows, compare, find_sources, write_comparison
    from sparsepo.inspection.summary_page import overview_rows
    from sparsepo.inspection.token_classes import find_tagger

    from .tables import say, text_table

    console = Console()
    check_output_folder(args.output)
    words = content_filter_of(args)
    tagger, _ = find_tagger() if args.language is None else (None, "")
    found = compare(find_sources(args.runs), mask=args.mask, language=args.language, tagger=tagger)
    console.print(text_table("agreement", *agreement_rows(found)))
    console.print(text_table("masks", ["", *found.summaries], overview_rows(found.summaries)))
    if not any(found.shared.values()):
        say(
            console, "no pair is in two of them with the same tokens: patterns stand side by side, agreement is unknown"
        )
    if args.output is not None:
        folder = Path(args.output).expanduser()
        write_comparison(found, folder, words=words)
        say(console, f"wrote {folder / 'compare.html'}, compare.json and plots/")
        if (folder / "pairs.html").is_file():
            say(console, f"wrote {folder / 'pairs.html'}: the pairs themselves")
    return 0
