"""Tasks and their store: identity, one run each, resuming, failures."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from sparsepo.experiments import running
from sparsepo.experiments.store import Store, write_json
from sparsepo.experiments.tasks import MaterialSettings, Task


def test_identity_is_what_the_numbers_depend_on() -> None:
    task = Task("a", {"mask_gate": "relu", "beta": 0.5}, MaterialSettings(seed=3), judged_at=(0.5, 1.0))
    same = Task("another name", {"beta": 0.5, "mask_gate": "relu"}, MaterialSettings(seed=3), judged_at=(0.5, 1.0))
    assert task.key == same.key
    for other in (
        Task("a", {"mask_gate": "topk", "beta": 0.5}, MaterialSettings(seed=3), judged_at=(0.5, 1.0)),
        Task("a", {"mask_gate": "relu", "beta": 0.5}, MaterialSettings(seed=4), judged_at=(0.5, 1.0)),
        Task("a", {"mask_gate": "relu", "beta": 0.5}, MaterialSettings(seed=3)),
        task.quick(),
    ):
        assert other.key != task.key
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_bad_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="judged_at"):
        Task("a", judged_at=(1.5,))
    with pytest.raises(ValueError, match="steps=0"):
        Task("a", steps=0)
    with pytest.raises(ValueError, match="no colour"):
        Task.from_json({**Task("a").to_json(), "colour": 1})


def test_results_are_whole_and_carry_their_task(tmp_path: Path) -> None:
    store, task = Store(tmp_path), Task("a")
    assert store.result(task) is None
    store.save_failure(task, "Traceback\nValueError: x")
    assert "ValueError" in (store.failure(task) or "")
    store.save(task, {"value": 1})
    assert store.result(task) == {"task": task.to_json(), "value": 1}
    assert store.failure(task) is None
    with pytest.raises(ValueError, match="JSON"):  # nothing that only Python reads
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not (tmp_path / "x.json").exists()


def _claim(folder: str, key: str, answers: Any) -> None:
    with Store(folder).claimed(key) as is_free:
        answers.put(is_free)


def test_a_claim_holds_against_other_processes_and_ends_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def ask() -> bool:
        process = context.Process(target=_claim, args=(str(tmp_path), "k", answers))
        process.start()
        process.join()
        return bool(answers.get(timeout=10))

    store = Store(tmp_path)
    with store.claimed("k") as is_free:
        assert is_free
        assert not ask()
        with store.claimed("other") as other_is_free:
            assert other_is_free
    assert ask()


def test_tasks_run_once_failures_are_noted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsepo.experiments import playground_runs

    ran: list[str] = []
    broken = {"b"}

    def run(task: Task, store: Store) -> dict[str, Any]:
        ran.append(task.label)
        if task.label in broken:
            raise ValueError("cannot")
        return {"ranking": {}, "masks": {}, "policy": [], "health": {"seen": []}}

    monkeypatch.setattr(playground_runs, "run_task", run)
    store = Store(tmp_path)
    tasks = [Task(name, {"beta": number}) for number, name in enumerate("abc", 1)]
    running.run_tasks(tasks, store)
    assert ran == ["a", "b", "c"]
    assert "cannot" in (store.failure(tasks[1]) or "")
    with store.claimed(tasks[1].key):  # somebody else is at it
        running.run_tasks(tasks, store)
    running.run_tasks(tasks, store, retry=False)
    assert ran == ["a", "b", "c"]
    broken.clear()
    running.run_tasks(tasks, store)
    assert ran == ["a", "b", "c", "b"]
    assert store.failure(tasks[1]) is None
    with pytest.raises(ValueError, match="jobs=0"):
        running.run_tasks(tasks, store, jobs=0)
