"""Working through a list of tasks, in one process or several, each task once."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from typing import Any

from .store import Store
from .tasks import Task


def run_tasks(tasks: Sequence[Task], store: Store, jobs: int = 1, retry: bool = True) -> None:
    """Run what is not done yet.

    Args:
        tasks: in order of value.
        store: where results go. Other processes may work on the same folder at the same time.
        jobs: processes; each computes with one thread.
        retry: try runs that failed before once more.

    Raises:
        RuntimeError: a process died; what it had finished is kept.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs!r} must be at least 1.")
    if jobs == 1:
        _work([task.to_json() for task in tasks], str(store.folder), retry)
        return
    context = multiprocessing.get_context("spawn")
    content = [task.to_json() for task in tasks]
    workers = [
        context.Process(target=_work, args=(content, str(store.folder), retry, number)) for number in range(jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    died = [worker.exitcode for worker in workers if worker.exitcode]
    if died:
        raise RuntimeError(f"{len(died)} of {jobs} processes died (exit status {died}); start again to go on.")


def _work(content: Sequence[dict[str, Any]], folder: str, retry: bool, number: int = 0) -> None:
    """What one process does: take the next task that nobody has done or is doing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from sparsepo.playground.quiet import quiet_libraries

    torch.set_num_threads(1)  # the models are small, and numbers must not depend on the number of cores
    store = Store(folder)
    with quiet_libraries():
        for index, entry in enumerate(content):
            _run(Task.from_json(entry), store, f"[{number}] {index + 1}/{len(content)}", retry)


def _run(task: Task, store: Store, place: str, retry: bool) -> None:
    from .playground_runs import run_task

    with store.claimed(task.key) as is_free:
        if not is_free or store.result_path(task).is_file() or (not retry and store.failure(task) is not None):
            return
        start = time.perf_counter()
        try:
            result = run_task(task, store)
        except Exception as error:
            store.save_failure(task, traceback.format_exc())
            print(f"{place} {task.label}, seed {task.seed}: FAILED, {type(error).__name__}: {error}", flush=True)
            return
        store.save(task, result)
        print(
            f"{place} {task.label}, seed {task.seed}: {_summary(result)} {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def _summary(result: dict[str, Any]) -> str:
    words = []
    name = "reward_mask" if "reward_mask" in result["ranking"] else "log_ratio"
    for selection in ("all", "open_class"):
        found = result["ranking"].get(name, {}).get(selection)
        if found is not None:
            words.append(f"AUC {selection} {found['auc']:.3f}")
    if "reward_mask" in result["masks"]:
        words.append(f"zeros {result['masks']['reward_mask']['sparsity']:.2f}")
    if result["policy"]:
        last = result["policy"][-1]
        words.append(f"reward {last['reward']['mean']:.3f} @ KL {last['kl']['mean']:.3f}")
    return ", ".join(words) + (f", {' '.join(result['health']['seen'])}" if result["health"]["seen"] else "") + ","
