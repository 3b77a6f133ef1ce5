"""Working through a list of tasks, in one process or several, each task once."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .store import Store
from .tasks import Run

SHOWN = ("all", "open_class", "content")  # selections of tokens whose AUC a line of progress shows


def run_tasks(tasks: Sequence[Run], store: Store, jobs: int = 1, retry: bool = True) -> None:
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
        _work(list(tasks), str(store.folder), retry)
        return
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(list(tasks), str(store.folder), retry, number)) for number in range(jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    died = [worker.exitcode for worker in workers if worker.exitcode]
    if died:
        raise RuntimeError(f"{len(died)} of {jobs} processes died (exit status {died}); start again to go on.")


def _work(tasks: Sequence[Run], folder: str, retry: bool, number: int = 0) -> None:
    """What one process does: take the next task that nobody has done or is doing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from sparsepo.playground.quiet import quiet_libraries

    torch.set_num_threads(1)  # the models are small, and numbers must not depend on the number of cores
    store = Store(folder)
    with quiet_libraries():
        for index, task in enumerate(tasks):
            _run(task, store, f"[{number}] {index + 1}/{len(tasks)}", retry)


def _run(task: Run, store: Store, place: str, retry: bool) -> None:
    with store.claimed(task.key) as is_free:
        if not is_free or store.result_path(task).is_file() or (not retry and store.failure(task) is not None):
            return
        start = time.perf_counter()
        try:
            result = task.run(store)
        except Exception as error:
            store.save_failure(task, traceback.format_exc())
            print(f"{place} {task.label}, seed {task.seed}: FAILED, {type(error).__name__}: {error}", flush=True)
            return
        store.save(task, result | {"versions": _versions()})
        print(
            f"{place} {task.label}, seed {task.seed}: {_summary(result)} {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("sparsepo", "torch", "transformers", "trl")}


def _summary(result: dict[str, Any]) -> str:
    words = []
    name = "reward_mask" if "reward_mask" in result["ranking"] else "log_ratio"
    for selection in SHOWN:
        found = result["ranking"].get(name, {}).get(selection)
        if found is not None:
            words.append(f"AUC {selection} {found['auc']:.3f}")
    if "reward_mask" in result["masks"]:
        words.append(f"zeros {result['masks']['reward_mask']['sparsity']:.2f}")
    if result.get("policy"):
        last = result["policy"][-1]
        words.append(f"reward {last['reward']['mean']:.3f} @ KL {last['kl']['mean']:.3f}")
    return ", ".join(words) + (f", {' '.join(result['health']['seen'])}" if result["health"]["seen"] else "") + ","
