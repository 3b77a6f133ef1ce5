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
    "load_prompts": "prompts",
    "hh_row_to_conversation": "hh",
    "hh_to_messages": "hh",
    "is_hh_transcript": "hh",
    "split_hh_row": "hh",
    "why_not_split": "hh",
    "joined": "joining",
    "PairSettings": "pairs",
    "PairReport": "pairs",
    "pairs_from_scored": "pairs",
    "pairs_from_votes": "pairs",
    "split_by_prompt": "pairs",
    "CheckSettings": "check_settings",
    "CheckError": "report",
    "CheckReport": "report",
    "check_preferences": "checking",
}

__all__ = [
    "CheckError",
    "CheckReport",
    "CheckSettings",
    "DataError",
    "PairReport",
    "PairSettings",
    "RowFormat",
    "check_preferences",
    "detect_format",
    "format_of",
    "hh_row_to_conversation",
    "hh_to_messages",
    "is_hh_transcript",
    "joined",
    "load_preference_data",
    "load_prompts",
    "pairs_from_scored",
    "pairs_from_votes",
    "split_by_prompt",
    "split_hh_row",
    "why_not_split",
]

if TYPE_CHECKING:
    from .check_settings import CheckSettings
    from .checking import check_preferences
    from .errors import DataError
    from .formats import RowFormat, detect_format
    from .hh import hh_row_to_conversation, hh_to_messages, is_hh_transcript, split_hh_row, why_not_split
    from .joining import joined
    from .loading import format_of, load_preference_data
    from .pairs import PairReport, PairSettings, pairs_from_scored, pairs_from_votes, split_by_prompt
    from .prompts import load_prompts
    from .report import CheckError, CheckReport


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
