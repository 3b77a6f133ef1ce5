"""Every task of every study describes a run that the trainer accepts."""

from __future__ import annotations

from collections import Counter

import pytest

from sparsepo.experiments import matched
from sparsepo.experiments.grids import GRIDS, TARGETS, learned, plain
from sparsepo.experiments.tables import COLUMNS
from sparsepo.experiments.tasks import Task
from sparsepo.training import SparsePOConfig
from sparsepo.training.settings import resolve_settings

CANDIDATES = [
    task for method in matched.METHODS for anchor in (0.0, 0.1) for task in matched.candidates(method, anchor, 0)
]


def resolve(task: Task) -> None:
    own = task.settings | ({"mask": "data"} if task.oracle else {})
    resolve_settings(SparsePOConfig(output_dir="x", bf16=False, learning_rate=task.learning_rate, **own))


@pytest.mark.parametrize("name", list(GRIDS))
def test_settings_are_accepted_and_labels_are_unique(name: str) -> None:
    tasks = GRIDS[name]([0, 1])
    assert len({task.key for task in tasks}) == len(tasks)
    assert set(Counter((task.label, task.seed) for task in tasks).values()) == {1}
    assert [task.seed for task in tasks] == sorted(task.seed for task in tasks) or name == "defaults"
    assert {(task.label) for task in tasks if task.seed == 0} == {task.label for task in tasks if task.seed == 1}
    for task in tasks:
        if task.seed == 0:
            resolve(task)
    assert name in COLUMNS


def test_every_method_has_as_many_tries() -> None:
    for task in CANDIDATES:
        resolve(task)
    assert len(set(Counter(task.label for task in CANDIDATES).values())) == 1
    assert set(matched.FINALS) <= set(matched.METHODS)


def test_studies_hold_what_they_are_to_answer() -> None:
    targets = {task.settings["mask_target_sparsity"] for task in GRIDS["targets"]([0])}
    assert targets == set(TARGETS)
    anchors = {
        (task.settings.get("objective", "sparsepo"), task.settings["kl_anchor"]) for task in GRIDS["anchor"]([0])
    }
    assert len({objective for objective, _ in anchors}) == 7
    assert len({weight for _, weight in anchors}) == 5
    assert any(task.materials.unseen_words for task in GRIDS["defaults"]([0]))


def test_learned_names_what_it_changes() -> None:
    name, own = learned("relu", 0.6, mask_learning_rate=1e-3, kl_anchor=None)
    assert name == "relu 0.6, mask lr 0.001"
    expected = {"beta": 0.5, "mask_gate": "relu", "mask_target_sparsity": 0.6, "mask_learning_rate": 1e-3}
    assert own == expected
    name, own = plain("relu", 0.6, mask_learning_rate=1e-3, kl_anchor=None)
    assert name == "no fit, relu 0.6, mask lr 0.001"
    assert own == {**expected, "mask_log_ratio_weight": 0.0, "mask_map": "linear"}
