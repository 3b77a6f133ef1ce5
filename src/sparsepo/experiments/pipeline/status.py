"""What an experiment's folder says of its stages. Imports nothing heavy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .folder import ExperimentFolder, ago, clock

STATES = ("done", "running", "failed", "stale", "waiting", "blocked")


@dataclass(frozen=True)
class StageStatus:
    """One stage.

    Args:
        name, group, key: which.
        status: ``done``; ``running``: claimed, and its holder gives signs of life; ``stale``: claimed by a process that
            does not; ``failed``; ``waiting``: for earlier stages or for somebody to take it; ``blocked``: an earlier stage
            failed.
        details: in words: what came of it, who is at it since when, the reason of a failure, what it waits for.
        seconds: that it took; None unless done.
        host, pid, since: of its holder; None where nobody is at it.
        log: file of what it printed.
    """

    name: str
    group: str
    key: str
    status: str
    details: str
    seconds: float | None = None
    host: str | None = None
    pid: int | None = None
    since: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Status:
    """An experiment.

    Args:
        task, size: which.
        stages: in the order of the work.
    """

    task: str
    size: str
    stages: tuple[StageStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Stages by status, all of ``STATES``."""
        found = Counter(stage.status for stage in self.stages)
        return {state: found[state] for state in STATES}

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "task": self.task,
            "size": self.size,
            "counts": self.counts,
            "stages": [asdict(stage) for stage in self.stages],
        }


def status_of(path: str | Path, stale_after: float) -> Status:
    """The state of the experiment in a folder.

    Raises:
        ValueError: no experiment lives there.
    """
    folder = ExperimentFolder(path, stale_after)
    plan = folder.plan() if Path(path).is_dir() else None
    if plan is None:
        raise ValueError(
            f"{path} holds no experiment (no plan.json); `sparsepo experiment run TASK --output {path}` makes one."
        )
    found: dict[str, StageStatus] = {}
    for stage in plan["stages"]:
        found[stage["name"]] = _status(stage, folder, found)
    return Status(plan["task"], plan["size"], tuple(found.values()))


def _status(stage: Mapping[str, Any], folder: ExperimentFolder, earlier: Mapping[str, StageStatus]) -> StageStatus:
    name, group, key = stage["name"], stage["group"], stage["key"]
    log = str(folder.log(key)) if folder.log(key).is_file() else None
    result = folder.result(key)
    if result is not None:
        return StageStatus(name, group, key, "done", result.get("summary", ""), result["seconds"], log=log)
    claim = folder.claims.current(key)
    if claim is not None and claim.holder is not None:
        holder = claim.holder
        is_stale = claim.is_stale(folder.stale_after)
        told = (
            f"{holder.host}, process {holder.pid}, since {clock(holder.since)}, last sign of life {ago(claim.age)} ago"
        )
        if is_stale:
            told += "; will be taken over" + (": that process has ended" if holder.has_ended() else "")
        status = "stale" if is_stale else "running"
        return StageStatus(name, group, key, status, told, None, holder.host, holder.pid, clock(holder.since), log)
    failure = folder.failure(key)
    if failure is not None:
        return StageStatus(name, group, key, "failed", failure.reason, host=failure.host, pid=failure.pid, log=log)
    before = [earlier[needed] for needed in stage["needs"]]
    for needed in before:
        if needed.status in ("failed", "blocked"):
            return StageStatus(name, group, key, "blocked", f"needs {needed.name}, which {_why(needed)}")
    open_ones = [needed.name for needed in before if needed.status != "done"]
    return StageStatus(name, group, key, "waiting", f"for {', '.join(open_ones)}" if open_ones else "to be taken")


def _why(stage: StageStatus) -> str:
    return "failed" if stage.status == "failed" else "is blocked"
