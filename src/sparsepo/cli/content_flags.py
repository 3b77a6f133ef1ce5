"""The settings that mask offensive words where texts are shown: of every command that shows any, with the same names."""

from __future__ import annotations

import argparse
from typing import Any

FILTER_HELP = "mask offensive words of a short list where texts are shown (first letter and dots)"
WORDS_HELP = "mask these words too, one a line"


def add_content_flags(parser: argparse.ArgumentParser) -> None:
    """``--content_filter`` and ``--content_words FILE``."""
    parser.add_argument("--content_filter", action="store_true", help=FILTER_HELP)
    parser.add_argument("--content_words", metavar="FILE", help=WORDS_HELP)


def content_filter_of(args: Any) -> Any:
    """The filter that was asked for, or None.

    Args:
        args: whatever has ``content_filter`` and ``content_words``: a command's flags, or the settings of training.

    Raises:
        DataError: no such file of words.
    """
    from sparsepo.data.content import ContentFilter

    if args.content_words is not None:
        return ContentFilter.from_file(args.content_words)
    return ContentFilter() if args.content_filter else None
