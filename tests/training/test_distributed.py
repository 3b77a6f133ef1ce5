"""Two processes (gloo, on the CPU) equal one process on the same global batch: weights after some steps, mask weights, all
that is logged, and evaluation of sets whose last batch is short."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from sparsepo.inspection.history import read_history
from sparsepo.training.streams import FilledStream
from tests.support import perturbed, tiny_model

from .parallel_cases import CASES, WATCHED, run_case
from .running import assert_close, assert_same, moved, steps_of, without_clocks

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ("full-learned", "lora-independent", "full-activation", "streaming", "target-sparsity", "cached")
LONG = tuple(name for name in CASES if name not in DEFAULT)


def launch(folder: Path, names: Iterable[str], processes: int = 2, timeout: float = 120) -> None:
    """Run cases in processes of their own; the first failure or the time limit ends them all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.training.parallel_cases", str(folder), *names]
    logs = [(folder / f"process-{rank}.log").open("w+") for rank in range(processes)]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for process in started:
            process.wait(timeout)
    finally:
        for process in started:
            process.kill()
            process.wait()
        output = []
        for log in logs:
            log.seek(0)
            output.append(log.read()[-4000:])
            log.close()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(output)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Case name → folder with its results by one and by two processes; all default cases are launched at once."""
    folder = tmp_path_factory.mktemp("parallel")
    launched: set[str] = set()

    def get(name: str) -> Path:
        if name not in launched:
            group = DEFAULT if name in DEFAULT else (name,)
            launch(folder, group)
            launched.update(group)
        run_case(name, folder, processes=1)
        return folder

    return get


def read(folder: Path, name: str, processes: int, rank: int = 0) -> dict[str, Any]:
    stem = f"{name}-of{processes}-rank{rank}"
    return {
        "policy": load_file(folder / f"{stem}-policy.safetensors"),
        "mask": load_file(folder / f"{stem}-mask.safetensors"),
        **json.loads((folder / f"{stem}.json").read_text()),
    }


def check(folder: Path, name: str) -> None:
    one, two, other = read(folder, name, 1), read(folder, name, 2), read(folder, name, 2, rank=1)
    for part in ("policy", "mask"):
        assert_same(two[part], other[part])  # the processes agree bit for bit
        assert_close(one[part], two[part], rtol=5e-4, atol=5e-6)
    steps = [list(steps_of(run["log"])) for run in (one, two)]
    assert [entry["step"] for entry in steps[0]] == [entry["step"] for entry in steps[1]] != []
    for mine, theirs in zip(*steps, strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert_close(without_clocks(one["metrics"]), without_clocks(two["metrics"]), rtol=1e-3, atol=1e-5)
    assert_same(without_clocks(two["metrics"]), without_clocks(other["metrics"]))
    assert two["metrics"]["eval_5_loss"] != two["metrics"]["eval_7_loss"]


@pytest.mark.parametrize("name", DEFAULT)
def test_two_processes_equal_one(results: Callable[[str], Path], name: str) -> None:
    check(results(name), name)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_two_processes_equal_one_in_all_settings(results: Callable[[str], Path], name: str) -> None:
    check(results(name), name)


def test_two_processes_keep_the_masks_that_one_keeps(results: Callable[[str], Path]) -> None:
    folder = results(WATCHED)
    one, two = (read_history(folder / f"{WATCHED}-{n}") for n in (1, 2))
    assert list(one) == list(two) == [0, 1, 2, 3]
    for step in one:
        assert [record.number for record in one[step]] == [0, 1, 2]
        for mine, theirs in zip(one[step], two[step], strict=True):
            for side, other in zip(mine.sides().values(), theirs.sides().values(), strict=True):
                assert np.allclose(side.reward_mask, other.reward_mask, rtol=1e-3, atol=1e-5)


def test_two_processes_fill_the_reference_cache_as_one_does(results: Callable[[str], Path]) -> None:
    folder = results("cached")
    one, two = (sorted((folder / f"cached-{n}" / "_reference_cache").rglob("*.safetensors")) for n in (1, 2))
    assert [path.name for path in one] == [path.name for path in two]
    assert sum(path.name.startswith("rows-") for path in one) == 4 + 3 + 2  # of 11, 7 and 5 rows
    for mine, theirs in zip(one, two, strict=True):
        assert mine.read_bytes() == theirs.read_bytes(), mine.name


def test_the_steps_are_far_larger_than_the_tolerance(results: Callable[[str], Path]) -> None:
    folder = results("full-learned")
    start = dict(perturbed(tiny_model("gpt2")).named_parameters())
    end = read(folder, "full-learned", 1)["policy"]
    assert moved({name: start[name].detach() for name in end}, end) > 1e-2


@pytest.mark.parametrize(("count", "filled"), [(1, 4), (3, 4), (4, 4), (5, 8), (0, 0)])
def test_a_stream_is_filled_to_whole_batches_with_rows_that_do_not_count(count: int, filled: int) -> None:
    rows = list(FilledStream([{"row_id": index} for index in range(count)], 4))
    assert len(rows) == filled
    assert [row["row_id"] for row in rows[:count]] == list(range(count))
    assert all("sparsepo_pair_weight" not in row for row in rows[:count])
    assert all(row["sparsepo_pair_weight"] == 0 for row in rows[count:])
