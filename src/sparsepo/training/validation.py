"""Checks of setting values, whose messages name the setting, the value and the mend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def check_choice(name: str, value: Any, choices: Sequence[str], optional: bool = True) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices`` (or None where optional)."""
    if value is None and optional:
        return
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}.")


def check_bool(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False.")


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    integer: bool = False,
    optional: bool = True,
) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number in range (or None where optional)."""
    if value is None and optional:
        return
    kind = "a whole number" if integer else "a number"
    valid = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if not valid or not _is_finite(value):
        raise ValueError(f"{name}={value!r:.60} must be {kind}.")
    if least is not None and value < least:
        raise ValueError(f"{name}={value!r} must be at least {least}.")
    if above is not None and value <= above:
        raise ValueError(f"{name}={value!r} must be above {above}.")


def check_all_finite(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a number among the settings is infinite, nan, or beyond what a float holds."""
    for name, value in values.items():
        if isinstance(value, int | float) and not _is_finite(value):
            raise ValueError(f"{name}={value!r:.60} must be a finite number.")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_fraction(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a number in [0, 1) or None."""
    check_number(name, value, least=0)
    if value is not None and value >= 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1).")


def check_steps(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number of steps, a share below 1, or None."""
    check_number(name, value, least=0)
    if value is not None and value >= 1 and value != int(value):
        raise ValueError(f"{name}={value!r} must be a whole number of steps, or below 1: a share of training.")


def check_string_list(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is a non-empty list of ``choices`` without repeats, or None."""
    if value is None:
        return
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name}={value!r} must be a list of {', '.join(choices)}.")
    for item in value:
        check_choice(name, item, choices, optional=False)
    if len(set(value)) != len(value):
        raise ValueError(f"{name}={value!r} names a group twice.")
