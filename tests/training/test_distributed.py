"""Several processes (gloo, on the CPU) equal one on the same global batch, by DDP and by FSDP2: weights after some steps,
mask weights, all that is logged, and evaluation of sets whose last batch is short. Interrupted runs equal uninterrupted
ones."""

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
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparsepo import load_mask
from sparsepo.inspection.history import read_history
from sparsepo.training.streams import FilledStream
from tests.support import perturbed, tiny_model

from .parallel_cases import CASES, COMMAND, FULL, RESUMED, SHARDED, STOPPED, WATCHED, run_case
from .parallel_checkpoints import CASES as CASES_OF_RESUMING
from .running import assert_close, assert_same, moved, steps_of, without_clocks

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = (
    "full-learned",
    "lora-independent",
    "full-activation",
    "streaming",
    "target-sparsity",
    "cached",
    "rank-with-empty-mask",
    "fsdp2:untied",
    "fsdp2:lora-independent",
    "fsdp2:full-activation",
    "fsdp2:rank-without-tokens",
)
RESUMED_DEFAULT = ("fsdp2",)
NAMES = tuple(name for name in CASES if name != "half")
LONG = tuple(name for name in (*NAMES, *(SHARDED + name for name in NAMES)) if name not in DEFAULT)
FOUR = (
    *("full-learned", "lora-independent", "full-activation", "target-sparsity", "cached", "streaming", "shared-prefix"),
    *("rank-with-empty-mask", "rank-without-tokens"),
)


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
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Case name, number of processes → folder with the results by one and by that many; all default cases are launched at
    once."""
    folder = tmp_path_factory.mktemp("parallel")
    launched: set[tuple[str, int]] = set()
    whole_group = (*DEFAULT, *(RESUMED + name for name in RESUMED_DEFAULT), STOPPED, FULL)

    def get(name: str, processes: int = 2) -> Path:
        if (name, processes) not in launched:
            group = whole_group if processes == 2 and name in whole_group else (name,)
            launch(folder, group, processes, timeout=900)
            launched.update((member, processes) for member in group)
        base = name.removeprefix(SHARDED)
        if base in CASES and (base, 1) not in launched:
            run_case(base, folder, processes=1)
            launched.add((base, 1))
        return folder

    return get


def read(folder: Path, name: str, processes: int, rank: int = 0) -> dict[str, Any]:
    name = name.removeprefix(SHARDED) if processes == 1 else name
    stem = f"{name}-of{processes}-rank{rank}"
    return {
        "policy": load_file(folder / f"{stem}-policy.safetensors"),
        "mask": load_file(folder / f"{stem}-mask.safetensors"),
        **json.loads((folder / f"{stem}.json").read_text()),
    }


def check(folder: Path, name: str, processes: int = 2) -> None:
    one, several = read(folder, name, 1), read(folder, name, processes)
    other = read(folder, name, processes, rank=processes - 1)
    for part in ("policy", "mask"):
        assert_same(several[part], other[part])  # the processes agree bit for bit
        assert_close(one[part], several[part], rtol=5e-4, atol=5e-6)
    steps = [list(steps_of(run["log"])) for run in (one, several)]
    assert [entry["step"] for entry in steps[0]] == [entry["step"] for entry in steps[1]] != []
    for mine, theirs in zip(*steps, strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert_close(without_clocks(one["metrics"]), without_clocks(several["metrics"]), rtol=1e-3, atol=1e-5)
    assert_same(without_clocks(several["metrics"]), without_clocks(other["metrics"]))
    assert several["metrics"]["eval_5_loss"] != several["metrics"]["eval_7_loss"]
    if "rank-with" in name:
        assert steps[0][-1]["mask/reward/sparsity"] > 0.3


@pytest.mark.parametrize("name", DEFAULT)
def test_two_processes_equal_one(results: Callable[..., Path], name: str) -> None:
    check(results(name), name)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_two_processes_equal_one_in_all_settings(results: Callable[..., Path], name: str) -> None:
    if "quantised" in name:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    check(results(name), name)


@pytest.mark.long
@pytest.mark.parametrize("name", [*FOUR, *(SHARDED + name for name in FOUR)])
def test_four_processes_equal_one(results: Callable[..., Path], name: str) -> None:
    check(results(name, 4), name, 4)


@pytest.mark.long
def test_half_precision_under_fsdp2_stays_near_that_of_one_process(results: Callable[..., Path]) -> None:
    """Blocks compute in bfloat16 either way; losses are not rounded to it, as accelerate's own policy would."""
    name = SHARDED + "half"
    one, two = read(results(name), name, 1), read(results(name), name, 2)
    logs = [list(steps_of(run["log"])) for run in (one, two)]
    for mine, theirs in zip(*logs, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    losses = torch.tensor([entry["loss"] for entry in logs[1]])
    assert not torch.equal(losses, losses.bfloat16().float())


def check_resumed(folder: Path, name: str) -> None:
    """The processes have compared both runs; the folder loads without them."""
    policy, mask = (load_file(folder / f"{name}-{part}.safetensors") for part in ("policy", "mask"))
    if CASES_OF_RESUMING[name].lora:
        loaded = AutoPeftModelForCausalLM.from_pretrained(folder / name, is_trainable=True)
        found = {key: value for key, value in loaded.named_parameters() if value.requires_grad}
    else:
        loaded = AutoModelForCausalLM.from_pretrained(folder / name)
        found = dict(loaded.named_parameters())
    assert type(loaded).__module__.partition(".")[0] in ("transformers", "peft")
    assert_same({key: value.detach() for key, value in found.items()}, policy)
    assert_same(dict(load_mask(folder / name).state_dict()), mask)


@pytest.mark.parametrize("name", RESUMED_DEFAULT)
def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(results: Callable[..., Path], name: str) -> None:
    check_resumed(results(RESUMED + name), name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES_OF_RESUMING if name not in RESUMED_DEFAULT])
def test_resumed_runs_of_two_processes(results: Callable[..., Path], name: str) -> None:
    check_resumed(results(RESUMED + name), name)
    if name == "fsdp2-efficient-loading":  # what only one process has read is what all have read
        own, usual = (load_file(results(RESUMED + kind) / f"{kind}-policy.safetensors") for kind in (name, "fsdp2"))
        assert_same(own, usual)


@pytest.mark.long
def test_the_command_runs_under_fsdp2_from_beginning_to_end(tmp_path: Path) -> None:
    launch(tmp_path, (COMMAND,), timeout=600)
    output = tmp_path / "out"
    summary = json.loads((output / "train_summary.json").read_text())
    assert summary["steps"] == 2
    assert {"training (last logged)", "evaluation"} <= set(summary["metrics"])
    assert (output / "masks.html").is_file()
    assert (output / "report.html").is_file()
    model, start = (AutoModelForCausalLM.from_pretrained(folder) for folder in (output, tmp_path / "model"))
    before, after = (dict(each.named_parameters()) for each in (start, model))
    assert moved(before, {name: value.detach() for name, value in after.items()}) > 1e-4
    load_mask(output, start)


@pytest.mark.parametrize("name", [STOPPED, FULL])
def test_two_processes_stop_together(results: Callable[..., Path], name: str) -> None:
    """A signal to one of them ends the evaluation or the step of both; a disk that is full for one stops both at once. The
    processes have compared what they found."""
    assert {path.name for path in (results(name) / name).iterdir()} > {"rows"}


def test_two_processes_keep_the_masks_that_one_keeps(results: Callable[..., Path]) -> None:
    folder = results(WATCHED)
    one, two = (read_history(folder / f"{WATCHED}-{n}") for n in (1, 2))
    assert list(one) == list(two) == [0, 1, 2, 3]
    for step in one:
        assert [record.number for record in one[step]] == [0, 1, 2]
        for mine, theirs in zip(one[step], two[step], strict=True):
            for side, other in zip(mine.sides().values(), theirs.sides().values(), strict=True):
                assert np.allclose(side.reward_mask, other.reward_mask, rtol=1e-3, atol=1e-5)


def test_two_processes_fill_the_reference_cache_as_one_does(results: Callable[..., Path]) -> None:
    folder = results("cached")
    one, two = (sorted((folder / f"cached-{n}" / "_reference_cache").rglob("*.safetensors")) for n in (1, 2))
    assert [path.name for path in one] == [path.name for path in two]
    assert sum(path.name.startswith("rows-") for path in one) == 4 + 3 + 2  # of 11, 7 and 5 rows
    for mine, theirs in zip(one, two, strict=True):
        assert mine.read_bytes() == theirs.read_bytes(), mine.name


def test_the_steps_are_far_larger_than_the_tolerance(results: Callable[..., Path]) -> None:
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
