"""What the tables are to show, and whether they do: limits on ratios of variants that were measured in one run."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import markdown, ratio

DPO, COMPOSED = "TRL DPO (no KL)", "TRL composed (with KL)"
STEP_LIMITS = {"350,40": 0.60, "150,80": 0.72, "64,192": 0.92, "8,64": 1.00}
PREFIX_GAINS = {"350,40": 1.75, "150,80": 1.43, "512,512": 1.30}


@dataclass(frozen=True)
class Target:
    """``variant ÷ base`` in a table's result must not be above (or, for gains, below) the limit.

    ``peak``: of peak memory instead of time. ``gain``: the ratio is base ÷ variant, and the limit its least value.
    """

    table: str
    key: str
    variant: str
    base: str
    limit: float
    peak: bool = False
    gain: bool = False


def all_targets() -> list[Target]:
    """In the order of the tables."""
    head, key, frozen = "scorer_float32", "2 pairs, 192 tokens", "frozen head: cached reference"
    found = [
        Target(head, key, "fused", DPO, 0.65),
        Target(head, key, "fused", COMPOSED, 0.27),
        Target(head, key, "fused", "dense", 0.79),
        Target(head, key, "fused, anchor", DPO, 0.65),
        Target(head, key, "fused, 88 MiB", "dense", 0.25, peak=True),
        Target(head, key, "fused, 88 MiB", "fused", 1.05),
        Target(head, key, "fused, 80 % zeros", "fused", 0.23),
        Target(head, key, "fused, 90 % zeros", "fused", 0.15),
        Target(head, key, frozen, DPO, 0.33),
        Target(head, key, f"{frozen}, anchor", DPO, 0.33),
    ]
    for shape, least in PREFIX_GAINS.items():
        for model in ("gpt2", "llama"):
            found += [
                Target("prefix_float32", f"{model} {shape} checkpointing {state}", "auto", "separate", least, gain=True)
                for state in ("off", "on")
            ]
    for shape, limit in STEP_LIMITS.items():
        for state in ("off", "on"):
            place = ("step_targets", f"{shape} checkpointing {state}")
            found += [Target(*place, "SparsePO", base, limit) for base in ("TRL DPO", "TRL DPO, head on responses")]
            if shape in ("350,40", "150,80"):
                base = "LoRA: TRL DPO, reference precomputed"
                cached = ("LoRA: MaPO, reference cached", "LoRA: SparsePO, reference cached")
                found += [Target(*place, variant, base, 0.75) for variant in cached]
    return found


def _rows(folder: Path, target: Target) -> dict[str, dict[str, Any]]:
    path = folder / f"{target.table}.json"
    results = json.loads(path.read_text()).get("results", []) if path.exists() else []
    rows = next((result["rows"] for result in results if result["key"] == target.key), [])
    return {row["variant"]: row for row in rows}


def judge(folder: Path, target: Target) -> tuple[str, str]:
    """The measured ratio with its spread, and whether it keeps the limit; "not measured" where a table lacks it."""
    rows = _rows(folder, target)
    if target.variant not in rows or target.base not in rows:
        return "not measured", ""
    above, below = rows[target.variant], rows[target.base]
    if target.peak:
        if above["peak_mib"] is None or not below["peak_mib"]:
            return "not measured", ""
        value = above["peak_mib"] / below["peak_mib"]
        return f"{value:.2f}", "yes" if value <= target.limit else "no"
    if target.gain:
        above, below = below, above
    value = statistics.median(above["seconds"]) / statistics.median(below["seconds"])
    kept = value >= target.limit if target.gain else value <= target.limit
    return ratio(above["seconds"], below["seconds"]), "yes" if kept else "no"


def target_table(folder: Path) -> str:
    """Markdown of all targets."""
    lines = []
    for target in all_targets():
        what = "times faster than" if target.gain else ("÷ (peak memory)" if target.peak else "÷")
        limit = f"{'≥' if target.gain else '≤'} {target.limit:.2f}"
        cells = [f"{target.table}: {target.key}", f"{target.variant} {what} {target.base}", limit]
        lines.append([*cells, *judge(folder, target)])
    return f"## Targets\n\n{markdown(['where', 'ratio', 'target', 'measured', 'kept'], lines)}"
