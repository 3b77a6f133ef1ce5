"""Checks of constructor settings; every message names the setting, the value and the mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}.")


def check_positive_int(name: str, value: Any) -> None:
    """Refuse what is not an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


def check_int(name: str, value: Any) -> None:
    """Refuse what is not an integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be an integer.")


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is not a number in [0, 1)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} must be at least 0 and below 1.")


def check_positive(name: str, value: Any) -> None:
    """Refuse what is not a finite number above zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number above 0.")


def check_share(name: str, value: Any) -> None:
    """Refuse what is not a number in (0, 1]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must be above 0 and at most 1.")
