"""Preference data: loading, splitting transcripts, making pairs, checking."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Loaded on first use: a single row can be split without `datasets`.
_LAZY = {
    "DataError": "errors",
    "RowFormat": "formats",
    "detect_format": "formats",
    "format_of": "loading",
    "load_preference_data": "loading",
    "hh_row_to_conversation": "hh",
    "hh_to_messages": "hh",
    "is_hh_transcript": "hh",
    "split_hh_row": "hh",
    "why_not_split": "hh",
}

__all__ = list(_LAZY)

if TYPE_CHECKING:
    from .errors import DataError
    from .formats import RowFormat, detect_format
    from .hh import hh_row_to_conversation, hh_to_messages, is_hh_transcript, split_hh_row, why_not_split
    from .loading import format_of, load_preference_data


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
