"""The flags that mask offensive words where texts are shown."""

from __future__ import annotations

import argparse
from typing import Any


def add_content_flags(parser: argparse.ArgumentParser) -> None:
    """``--content_filter`` and ``--content_words FILE``."""
    parser.add_argument(
        "--content_filter",
        action="store_true",
        help="mask offensive words of a short list where texts are shown (first letter and dots)",
    )
    parser.add_argument("--content_words", metavar="FILE", help="mask these words too, one a line")


def content_filter_of(args: argparse.Namespace) -> Any:
    """The filter that was asked for, or None.

    Raises:
        DataError: no such file of words.
    """
    from sparsepo.data.content import ContentFilter

    if args.content_words is not None:
        return ContentFilter.from_file(args.content_words)
    return ContentFilter() if args.content_filter else None
