"""Stages and what they depend on: a stage's key is a hash of its settings, its files and the stages before it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sparsepo.experiments.tasks import key_of

GROUPS = ("data", "sft", "pairs", "reward", "train", "evaluate")  # in the order of the work
WITHOUT_EFFECT = ("workers",)  # settings that decide how fast a stage is, and nothing of what comes out
RUN_GROUPS = ("train", "evaluate")  # one a method, β and seed


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Args:
        name: for people, different for every stage of a plan.
        group: one of ``GROUPS``.
        action: what is to be done: a name of ``sparsepo.experiments.pipeline.actions.ACTIONS``.
        settings: all that it depends on beside files and earlier stages, JSON types.
        sources: what it reads, by role: local files or folders, or ids of the hub.
        needs: earlier stages by role.
        row: method, beta and seed of a run; empty for other stages.
    """

    name: str
    group: str
    action: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The stages of an experiment, earlier ones first, and their keys.

    Args:
        task, size: of its recipe.
        stages: by name.
        keys: by name.
    """

    task: str
    size: str
    stages: dict[str, Stage]
    keys: dict[str, str]

    @classmethod
    def of(cls, task: str, size: str, stages: Iterable[Stage]) -> Plan:
        """Work out the keys.

        Raises:
            ValueError: a name twice, or a stage that needs one which does not come before it.
        """
        own: dict[str, Stage] = {}
        keys: dict[str, str] = {}
        for stage in stages:
            if stage.name in own:
                raise ValueError(f"Two stages are called {stage.name!r}.")
            if missing := [name for name in stage.needs.values() if name not in own]:
                raise ValueError(f"{stage.name!r} needs {missing[0]!r}, which does not come before it.")
            own[stage.name] = stage
            keys[stage.name] = key_of(_slug(stage.name), identity(stage, keys))
        return cls(task, size, own, keys)

    def runs(self) -> list[Stage]:
        """The evaluations: one a row of the results."""
        return [stage for stage in self.stages.values() if stage.group == "evaluate"]

    def depending(self, names: Iterable[str]) -> list[str]:
        """The stages that need one of these, directly or not, without themselves."""
        found = set(names)
        given = set(found)
        for stage in self.stages.values():
            if found & set(stage.needs.values()):
                found.add(stage.name)
        return [name for name in self.stages if name in found - given]

    def to_json(self) -> dict[str, Any]:
        """As JSON types: what ``status`` reads, and what tells which settings have changed."""
        return {
            "task": self.task,
            "size": self.size,
            "stages": [
                {
                    "name": stage.name,
                    "group": stage.group,
                    "key": self.keys[stage.name],
                    "needs": list(stage.needs.values()),
                    "settings": stage.settings,
                    "sources": {role: [digest_of(item) for item in own] for role, own in stage.sources.items()},
                    "row": stage.row,
                }
                for stage in self.stages.values()
            ],
        }


def identity(stage: Stage, keys: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a stage's output depends on. Where files lie is no part of it, what they hold is."""
    return {
        "action": stage.action,
        "settings": {name: value for name, value in stage.settings.items() if name not in WITHOUT_EFFECT},
        "sources": {role: [digest_of(item) for item in own] for role, own in stage.sources.items()},
        "needs": {role: keys[name] for role, name in stage.needs.items()},
    }


def digest_of(source: str) -> str:
    """A local file's or folder's content as a hash; what does not exist here is the name of something on the hub."""
    path = Path(source).expanduser()
    return f"sha256:{_digest(str(path.resolve()))}" if path.exists() else f"hub:{source}"


@cache
def _digest(path: str) -> str:
    """Of a file, or of the names and contents of all files of a folder; read once a process."""
    found = hashlib.sha256()
    root = Path(path)
    files = [root] if root.is_file() else sorted(Path(at) / name for at, _, names in os.walk(root) for name in names)
    for file in files:
        if file != root:
            found.update(f"\0{file.relative_to(root)}\0".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                found.update(block)
    return found.hexdigest()[:24]


def _slug(name: str) -> str:
    plain = name.replace("β ", "b").replace(" ", "-")
    return "".join(letter for letter in plain if letter.isalnum() or letter in "-._")


def changes(before: Mapping[str, Any], plan: Plan) -> list[str]:
    """What a new plan does again that an earlier one of the folder had otherwise, in words: one line a changed stage.

    Args:
        before: the earlier plan as :meth:`Plan.to_json` gives it.
        plan: the new one.
    """
    old = {stage["name"]: stage for stage in before["stages"]}
    new = {stage["name"]: stage for stage in plan.to_json()["stages"]}
    lines = []
    for name, stage in new.items():
        earlier = old.get(name)
        if earlier is None or earlier["key"] == stage["key"]:
            continue
        told = _difference(earlier["settings"], stage["settings"]) + _difference(earlier["sources"], stage["sources"])
        if told:  # a stage that changed by itself; those that only depend on it are counted
            after = len([one for one in plan.depending([name]) if one in old])
            rest = f", and with it {after} stage{'s' if after != 1 else ''} that need{'s' if after == 1 else ''} it"
            lines.append(f"{name}: {'; '.join(told)}: done again{rest if after else ''}")
    return lines


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> list[str]:
    lines = []
    for name in sorted(set(before) | set(after)):
        left, right = before.get(name), after.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += _difference(left, right, f"{at}{name}.")
        elif left != right:
            lines.append(f"{at}{name} {_short(left)} → {_short(right)}")
    return lines


def _short(value: Any) -> str:
    text = "unset" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
