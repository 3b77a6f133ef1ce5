"""Working through a plan: every stage once, whoever works; failures block what needs them only; killed, it goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsepo.experiments.pipeline import actions, working
from sparsepo.experiments.pipeline.claims import own_holder
from sparsepo.experiments.pipeline.folder import ExperimentFolder
from sparsepo.experiments.pipeline.jobs import Job
from sparsepo.experiments.pipeline.stages import Plan, Stage
from sparsepo.experiments.pipeline.status import status_of
from sparsepo.experiments.pipeline.working import WITHOUT_WEIGHTS, Work, printed_to, work_through

CONTEXT = multiprocessing.get_context("fork")


class NoCommands:
    """Commands for plans that train nothing."""

    def check(self, command: str, settings: Mapping[str, Any]) -> None: ...

    def run(self, command: str, settings: Mapping[str, Any], recipe: Path) -> None: ...

    def merge(self, adapter: Path, output: Path) -> None: ...


def plan(runs: int = 4, seconds: float = 0.0, fails: str = "") -> Plan:
    """data → runs → their evaluations; what a stage does is in :func:`do`."""
    stages = [Stage("data", "data", "rows", {"seconds": seconds})]
    for number in range(runs):
        row = {"method": "DPO", "beta": 0.1, "seed": number}
        own = {"seconds": seconds, "fails": fails == f"train {number}"}
        stages.append(Stage(f"train {number}", "train", "train", own, needs={"data": "data"}, row=row))
        needs = {"train": f"train {number}", "data": "data"}
        stages.append(Stage(f"evaluate {number}", "evaluate", "evaluate", {}, needs=needs, row=row))
    return Plan.of("sentiment", "small", stages)


def do(job: Job) -> dict[str, Any]:
    """Leaves a line in a common file when it begins and one when it ends, and needs what it says it needs."""
    root = job.folder.parent.parent
    assert all((folder / "done.json").is_file() for folder in job.inputs.values())
    _note(root, f"begin {job.stage.name}")
    print(f"this is {job.stage.name}")
    os.write(1, b"and this past Python\n")  # as a library or a child process would
    time.sleep(job.settings.get("seconds", 0.0))
    if job.settings.get("fails"):
        raise ValueError("no good\nin two lines")
    if job.stage.group == "train":
        (job.folder / "model").mkdir(exist_ok=True)
        (job.folder / "model" / "model.safetensors").write_text("weights")
        (job.folder / "model" / "config.json").write_text("{}")
    if job.stage.group == "evaluate":
        assert (job.inputs["train"] / "model" / "model.safetensors").is_file()
    _note(root, f"end {job.stage.name}")
    return {"summary": job.stage.name}


def _note(root: Path, line: str) -> None:
    with (root / "notes").open("a") as file:
        file.write(line + "\n")


def notes(root: Path, kind: str = "end") -> list[str]:
    text = (root / "notes").read_text() if (root / "notes").is_file() else ""
    return [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith(kind)]


@pytest.fixture(autouse=True)
def own_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "do", do)
    monkeypatch.setattr(working.gc, "collect", lambda: 0)  # takes long beside libraries that other tests have loaded


def work(root: Path, own: Plan, **settings: Any) -> Work:
    ExperimentFolder(root).save_plan(own.to_json())
    started = ExperimentFolder(root).now()
    return Work(own, str(root), NoCommands(), started=started, poll=0.05, **settings)


def test_every_stage_once_and_never_again(tmp_path: Path) -> None:
    own = plan()
    work_through(work(tmp_path, own))
    assert notes(tmp_path) == list(own.stages)
    work_through(work(tmp_path, own))
    assert notes(tmp_path) == list(own.stages)
    found = status_of(tmp_path, 300)
    assert found.counts["done"] == len(own.stages) == len(found.stages)
    log = (tmp_path / "logs" / f"{own.keys['train 1']}.log").read_text()
    assert "this is train 1\n" in log
    assert "and this past Python\n" in log


def test_processes_share_the_work(tmp_path: Path) -> None:
    own = plan(runs=6, seconds=0.05)
    given = work(tmp_path, own)
    workers = [CONTEXT.Process(target=work_through, args=(given,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(notes(tmp_path, "begin")) == sorted(own.stages)  # nothing was begun twice
    assert sorted(notes(tmp_path)) == sorted(own.stages)
    assert not list((tmp_path / "claims").iterdir())


def test_a_failure_blocks_what_needs_it_and_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = plan(fails="train 1")
    work_through(work(tmp_path, own))
    assert "train 1: FAILED, ValueError: no good" in capsys.readouterr().out
    assert len(notes(tmp_path)) == len(own.stages) - 2
    by_name = {stage.name: stage for stage in status_of(tmp_path, 300).stages}
    assert (by_name["train 1"].status, by_name["train 1"].details) == ("failed", "ValueError: no good")
    assert by_name["evaluate 1"].status == "blocked"
    assert "needs train 1, which failed" in by_name["evaluate 1"].details
    assert "in two lines" in json.loads((tmp_path / "failed" / f"{own.keys['train 1']}.json").read_text())["details"]
    work_through(work(tmp_path, own))
    assert notes(tmp_path, "begin").count("train 1") == 2  # once more at the next start, once only


def test_status_of_work_under_way_and_of_work_that_died(tmp_path: Path) -> None:
    own = plan(runs=1)
    folder = ExperimentFolder(tmp_path)
    folder.save_plan(own.to_json())
    held = folder.claims.take(own.keys["data"])
    assert held is not None
    with held:
        stages = status_of(tmp_path, 300).stages
        assert (stages[0].status, stages[0].pid) == ("running", os.getpid())
        assert "last sign of life 0 s ago" in stages[0].details
        assert (stages[1].status, stages[1].details) == ("waiting", "for data")
        claim = next((tmp_path / "claims").iterdir())
        claim.write_text(json.dumps({**vars(own_holder()), "pid": 2**22 + 1, "born": "1"}))
        dead = status_of(tmp_path, 300).stages[0]
        assert dead.status == "stale"
        assert "that process has ended" in dead.details
    with pytest.raises(ValueError, match="holds no experiment"):
        status_of(tmp_path / "nowhere", 300)
    assert json.loads(json.dumps(status_of(tmp_path, 300).to_json()))["counts"]["waiting"] == 3


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    """Kill a process in the middle of a stage; the next one does that stage again, at once, and no other twice."""
    own = plan(runs=2, seconds=0.4)
    killed = []
    for _ in range(3):
        worker = CONTEXT.Process(target=work_through, args=(work(tmp_path, own),))
        before = len(notes(tmp_path, "begin"))
        worker.start()
        deadline = time.monotonic() + 30
        while len(notes(tmp_path, "begin")) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        killed.append(worker.exitcode)
    assert killed == [-signal.SIGKILL] * 3
    work_through(work(tmp_path, own))
    assert sorted(notes(tmp_path)) == sorted(own.stages)


def test_who_lost_its_claim_writes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = plan(runs=0)
    key = own.keys["data"]

    def slow(job: Job) -> dict[str, Any]:
        folder = ExperimentFolder(tmp_path, 0.4)
        claim = tmp_path / "claims" / f"{key}.1"
        claim.write_text(json.dumps({**vars(own_holder()), "place": "elsewhere"}))
        os.utime(claim, (1, 1))  # as if this machine had been asleep
        assert folder.claims.take(key) is not None
        folder.save(key, {"summary": "theirs", "seconds": 1.0})
        time.sleep(60)  # interrupted by the heartbeat, which finds the claim lost
        return {"summary": "ours"}

    monkeypatch.setattr(actions, "do", slow)
    start = time.monotonic()
    work_through(work(tmp_path, own, stale_after=0.4))
    assert time.monotonic() - start < 50
    result = ExperimentFolder(tmp_path).result(key)
    assert result is not None
    assert result["summary"] == "theirs"


def test_weights_go_when_they_are_not_kept_and_come_back_when_they_are_needed(tmp_path: Path) -> None:
    own = plan(runs=1)
    work_through(work(tmp_path, own, keep_models=False))
    train = tmp_path / "stages" / own.keys["train 0"]
    assert not (train / "model" / "model.safetensors").exists()
    assert (train / "model" / "config.json").is_file()
    work_through(work(tmp_path, own, keep_models=False))
    assert notes(tmp_path).count("train 0") == 1
    stages = dict(own.stages)
    stages["evaluate 0"] = Stage("evaluate 0", "evaluate", "evaluate", {"prompts": 9}, {}, stages["evaluate 0"].needs)
    other = Plan.of("sentiment", "small", stages.values())
    work_through(work(tmp_path, other))
    assert notes(tmp_path).count("train 0") == 2
    assert not (train / WITHOUT_WEIGHTS).exists()
    assert (train / "model" / "model.safetensors").is_file()


def test_what_is_printed_goes_to_its_file(tmp_path: Path) -> None:
    with printed_to(tmp_path / "logs" / "x.log"):
        print("kept")
    assert (tmp_path / "logs" / "x.log").read_text() == "kept\n"
