"""What every run reports, whatever it was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsepo.evaluation.token_table import TokenTable

MASKS = ("reward_mask", "kl_mask")
Ranking = dict[str, dict[str, dict[str, float] | None]]


def rank(table: TokenTable, selections: Mapping[str, Mapping[str, str]]) -> Ranking:
    """Every score on every selection of tokens: AUC and average precision, None where a selection has one class only.

    Args:
        table: the tokens.
        selections: by name, arguments of :meth:`TokenTable.ranking`.
    """

    def one(score: str, selection: Mapping[str, str]) -> dict[str, float] | None:
        try:
            return table.ranking(score, **selection)
        except ValueError:
            return None

    return {score: {name: one(score, own) for name, own in selections.items()} for score in table.scores}


def health_of(trainer: Any) -> dict[str, Any]:
    """What the health monitor saw: at the end, and at any time; ``collapse``: whether masks were collapsed at the end."""
    health = trainer.mask_health
    if health is None:
        return {"active": [], "seen": [], "collapse": False}
    active = sorted({finding.name for finding in health.findings})
    seen = sorted({event["name"] for event in health.history} | set(active))
    return {"active": active, "seen": seen, "collapse": "collapse" in active}


def last_values(history: list[dict[str, Any]]) -> dict[str, float]:
    """The value logged last by each name; values that are not finite, and those of the clock, are left out."""
    values: dict[str, float] = {}
    for entry in history:
        values |= {name: float(value) for name, value in entry.items() if isinstance(value, (int, float))}
    return {
        name: value
        for name, value in values.items()
        if math.isfinite(value) and not name.endswith(("_runtime", "_per_second"))
    }


def summary_of_heads(table: TokenTable, names: Sequence[str], selection: Mapping[str, str]) -> dict[str, Any]:
    """AUC of several scores that are alike, such as untrained heads: mean, extremes and all of them."""
    aucs = np.array([table.ranking(name, **selection)["auc"] for name in names])
    return {"mean": float(aucs.mean()), "min": float(aucs.min()), "max": float(aucs.max()), "auc": aucs.tolist()}
