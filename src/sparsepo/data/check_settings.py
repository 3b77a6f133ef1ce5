"""Thresholds and actions of the check before training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import DataError
from .report import RULES, Action


@dataclass(frozen=True)
class CheckSettings:
    """Thresholds and actions of the check.

    Args:
        strict: stop at the end of the check if any row would be dropped, naming the first row and field.
        max_dropped: share of rows that may be dropped before that is an error, in [0, 1].
        max_lost: drop a row if one of its responses loses more than this share of its tokens to max_length; None: such
            rows are kept and counted. 0 drops every truncated row.
        actions: ``"drop"`` or ``"keep"`` by rule (keys of ``sparsepo.data.report.RULES``), over the defaults. Rules whose
            rows training cannot read are fixed.
        hh_conversational: turn split transcripts into chat messages; otherwise they stay plain text.
        truncation_mode: the trainer's: ``keep_start`` or ``keep_end``.
        examples: rows kept as examples for each rule.
        batch_size: rows tokenised in one call.
        progress: show a progress bar; None: from 5,000 rows on, in a terminal.

    Raises:
        DataError: a setting out of range.
    """

    strict: bool = False
    max_dropped: float = 0.5
    max_lost: float | None = None
    actions: Mapping[str, Action] = field(default_factory=dict)
    hh_conversational: bool = False
    truncation_mode: str = "keep_start"
    examples: int = 3
    batch_size: int = 256
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in ("max_dropped", "max_lost"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise DataError(f"{name}={value} must be a share between 0 and 1.")
        if self.truncation_mode not in ("keep_start", "keep_end"):
            raise DataError(f"truncation_mode={self.truncation_mode!r} must be 'keep_start' or 'keep_end'.")
        for name in ("examples", "batch_size"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)} must be at least 1.")
        for code, action in self.actions.items():
            if code not in RULES:
                raise DataError(f"There is no rule {code!r}; rules are {', '.join(RULES)}.")
            if action not in ("drop", "keep"):
                raise DataError(f"actions[{code!r}]={action!r} must be 'drop' or 'keep'.")
            if action == "keep" and RULES[code].is_fixed:
                raise DataError(f"Rows found by {code!r} cannot be kept: training cannot read them.")

    def action(self, code: str) -> Action:
        """What is done with rows that a rule finds."""
        return self.actions.get(code, RULES[code].action)
