"""An offline sentiment world whose preference-bearing tokens are known: demo, tests, and the yardstick of masks."""

from __future__ import annotations

from .ceiling import PrefixOracle
from .models import build_model, build_tokenizer, train_sft
from .pairs import build_pairs, make_pairs, sample_responses
from .settings import DemoSettings
from .world import Review, World
from .yardstick import PreferenceTable, token_table

__all__ = [
    "DemoSettings",
    "PreferenceTable",
    "PrefixOracle",
    "Review",
    "World",
    "build_model",
    "build_pairs",
    "build_tokenizer",
    "make_pairs",
    "sample_responses",
    "token_table",
    "train_sft",
]
