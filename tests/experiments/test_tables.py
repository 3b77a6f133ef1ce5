"""Tables say what the results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsepo.experiments.grids import GRIDS
from sparsepo.experiments.store import Store
from sparsepo.experiments.tables import COLUMNS, MASK_COLUMNS, PAIRED, paired_table, study_table, verdict_table
from sparsepo.experiments.tasks import MaterialSettings, Task


def result(auc: float, share: float, zeros: float, collapse: bool = False) -> dict[str, Any]:
    both = {"auc": auc, "average_precision": auc / 2}
    return {
        "ranking": {"reward_mask": {"all": both, "open_class": both, "chosen": None}},
        "masks": {"reward_mask": {"sparsity": zeros, "mean": 1.0}},
        "share_of_ceiling": {"all": share, "open_class": share - 0.02},
        "health": {"collapse": collapse, "active": [], "seen": []},
        "controls": {},
        "policy": [{"reward": {"mean": 0.7, "se": 0.01}, "kl": {"mean": 0.3, "se": 0.01}}],
        "log": {},
    }


def tasks(label: str, target: float | None = 0.6) -> list[Task]:
    settings = {"mask_gate": label} | ({} if target is None else {"mask_target_sparsity": target})
    return [Task(label, settings, MaterialSettings(seed=seed)) for seed in (0, 1)]


def cells(table: str, label: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_intervals_and_what_is_missing(tmp_path: Path) -> None:
    store, done, open_ = Store(tmp_path), tasks("relu"), tasks("topk", None)
    store.save(done[0], result(0.90, 0.99, 0.6))
    store.save(done[1], result(0.92, 0.99, 0.6))
    store.save(open_[0], result(0.80, 0.99, 0.6))
    store.save_failure(open_[1], "Traceback\nValueError: bad\n")
    table = study_table([*done, *open_], store, MASK_COLUMNS)
    assert cells(table, "relu")[:3] == ["relu", "2", "0.910 ± 0.127"]  # t(1) = 12.706, s = .01414
    assert cells(table, "topk")[:3] == ["topk", "1", "0.800"]
    assert "–" in cells(table, "relu")
    assert "1 of 4 runs are not done" in table
    assert "failed: topk, seed 1: ValueError: bad" in table
    header = next(line for line in table.splitlines() if line.startswith("| setting"))
    assert header.count("|") == next(line for line in table.splitlines() if line.startswith("| relu")).count("|")


def test_settings_are_held_against_another_of_the_same_seed(tmp_path: Path) -> None:
    """What a seed does to both falls out: 0.9 and 0.7 less 0.8 and 0.6 are 0.1 and 0.1."""
    store, ours, base = Store(tmp_path), tasks("topk"), tasks("relu")
    for task, auc in zip([*ours, *base], (0.9, 0.7, 0.8, 0.6), strict=True):
        store.save(task, result(auc, 0.99, 0.6))
    table = paired_table([*ours, *base], store, lambda label: "relu")
    assert cells(table, "topk")[:5] == ["topk", "relu", "2", "0.100 ± 0.000", "0.100 ± 0.000"]
    assert cells(table, "topk")[5:] == ["0.000 ± 0.000", "0.000 ± 0.000", "–"]
    assert "| relu | relu" not in table
    assert paired_table(ours, store, lambda label: "relu") == ""


def test_every_setting_of_a_study_has_one_that_it_is_held_against() -> None:
    for name, other in PAIRED.items():
        labels = {task.label for task in GRIDS[name]([0])}
        assert {other(label) for label in labels} <= labels


def test_verdicts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cases = {
        "good": [result(0.9, 1.005, 0.6), result(0.9, 1.001, 0.64)],
        "low": [result(0.9, 0.99, 0.6), result(0.9, 0.98, 0.6)],
        "off": [result(0.9, 1.01, 0.6), result(0.9, 1.01, 0.66)],
        "dead": [result(0.9, 1.01, 0.6), result(0.5, 1.01, 0.6, collapse=True)],
    }
    every = []
    for label, results in cases.items():
        for task, own in zip(tasks(label), results, strict=True):
            store.save(task, own)
            every.append(task)
    table = verdict_table(every, store)
    assert cells(table, "good")[2:] == ["yes", "yes", "yes", "yes"]
    assert cells(table, "low")[2:] == ["yes", "**no**", "yes", "yes"]
    assert cells(table, "off")[2:] == ["yes", "yes", "**no**", "yes"]
    assert cells(table, "dead")[2:] == ["yes", "yes", "yes", "**no**"]


def test_no_column_name_breaks_a_table() -> None:
    for columns in COLUMNS.values():
        assert not any("|" in name for name in columns)
