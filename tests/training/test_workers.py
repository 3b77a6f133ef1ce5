"""Workers that load data: deaf to signals of others, obedient to their trainer, gone when it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from sparsepo.training.workers import HearsParentOnly, shield_workers

from .interrupted_runs import command, finish, start, wait_for, weights, write_materials
from .running import assert_same, build, run_config

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="senders cannot be told here")


class Slow:
    """Rows that say which process read them; the last one takes a minute."""

    def __init__(self, folder: Path, rows: int, stuck: bool = False) -> None:
        self.folder, self.rows, self.stuck = folder, rows, stuck

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> int:
        (self.folder / f"worker-{os.getpid()}").touch()
        time.sleep(60 if self.stuck and row == self.rows - 1 else 0.01)
        return row


def started(body: Callable[[], int]) -> int:
    """Run a function in a process that leads a group of its own; returns its number. Its status is what it returns."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
            heard: list[int] = []
            status = body() + 100 * bool(heard)
        finally:
            os._exit(status)
    return child


def appeared(folder: Path, count: int) -> list[int]:
    """Numbers of the workers, once there are so many."""
    for _ in range(1200):
        found = [int(path.name.partition("-")[2]) for path in folder.glob("worker-*")]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {count} workers in a minute")


def wait_until_gone(processes: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{number}").exists() for number in processes):
        assert time.monotonic() < deadline, f"of {processes} some are left behind"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_leaves_them_at_work(tmp_path: Path, number: signal.Signals) -> None:
    def body() -> int:
        signal.signal(number, signal.getsignal(signal.SIGTERM))
        loader = shield_workers(DataLoader(Slow(tmp_path, 200), num_workers=2))  # type: ignore[arg-type]
        return 7 if [int(row) for row in loader] == list(range(200)) else 1

    child = started(body)
    workers = appeared(tmp_path, 2)
    os.killpg(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 107  # all rows, and it has heard the signal
    wait_until_gone(workers, 10)


def test_they_do_not_outlive_a_trainer_that_is_killed(tmp_path: Path) -> None:
    def body() -> int:
        rows = iter(shield_workers(DataLoader(Slow(tmp_path, 10, stuck=True), num_workers=2)))  # type: ignore[arg-type]
        next(rows)
        time.sleep(60)
        return 0

    child = started(body)
    workers = appeared(tmp_path, 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until_gone(workers, 20)  # one of them in the middle of a row that takes a minute


def test_their_trainer_can_end_one_that_hangs(tmp_path: Path) -> None:
    child = started(lambda: _hangs(tmp_path))
    appeared(tmp_path, 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _hangs(folder: Path) -> int:
    import multiprocessing

    init = HearsParentOnly(None, os.getpid())

    def work() -> None:
        init(0)
        (folder / f"worker-{os.getpid()}").touch()
        time.sleep(60)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    appeared(folder, 1)
    worker.terminate()
    worker.join(20)
    return int(worker.is_alive())


def test_loaders_of_the_trainer_have_it_and_keep_their_own(tmp_path: Path, rows: Dataset) -> None:
    """Also the loader that skips what a resumed run has seen, and evaluation's."""
    from accelerate.data_loader import skip_first_batches

    trainer = build(run_config(tmp_path, dataloader_num_workers=2, mask="learned"), rows, eval_dataset=rows)
    training = trainer.get_train_dataloader()
    for loader in (training, skip_first_batches(training, 1), trainer.get_eval_dataloader()):
        assert isinstance(loader.worker_init_fn, HearsParentOnly)
    assert training.worker_init_fn.inner is not None  # Trainer's, which seeds
    alone = build(run_config(tmp_path, mask="learned"), rows).get_train_dataloader()
    assert not isinstance(alone.worker_init_fn, HearsParentOnly)


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_with_workers_stopped_by_its_group(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """As a terminal's Ctrl-C and many schedulers do it: the signal goes to the run and its workers."""
    model, pairs = write_materials(tmp_path)
    flags: tuple[Any, ...] = ("--dataloader_num_workers=2",)
    finish(command(model, pairs, tmp_path / "whole", *flags))
    process = start(command(model, pairs, tmp_path / "out", *flags), new_session=True)
    wait_for(process, "step 3/8")
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    assert "stopped after step" in output
    for _ in range(100):  # the group is empty
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("processes of the run are left behind")
    finish(command(model, pairs, tmp_path / "out", *flags))
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "whole"))
