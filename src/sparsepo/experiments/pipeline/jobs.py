"""What a stage's action is given, and how it reaches the commands that train."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparsepo.data.reading import read_rows

from .stages import Stage

MODEL = "model"  # folder of a stage's model
Row = dict[str, Any]


class Commands(Protocol):
    """The commands that train, handed in so that experiments do not depend on the command line. It can be pickled."""

    def check(self, command: str, settings: Mapping[str, Any]) -> None:
        """Refuse settings of ``sft`` or ``train`` that it would refuse, without starting anything.

        Raises:
            ValueError, or the command line's error: names the setting.
        """

    def run(self, command: str, settings: Mapping[str, Any], recipe: Path) -> None:
        """Run ``sparsepo COMMAND --config RECIPE`` in this process, the settings being written to ``recipe`` first."""

    def merge(self, adapter: Path, output: Path) -> None:
        """Merge an adapter into its base model."""


@dataclass(frozen=True)
class Job:
    """One stage to do.

    Args:
        stage: what it is.
        folder: where its output goes; may hold what an interrupted attempt left.
        inputs: folders of the stages that it needs, by role.
        results: what those stages found, by role.
        commands: the commands that train.
        may_execute: whether programs that a model wrote may be run.
    """

    stage: Stage
    folder: Path
    inputs: dict[str, Path]
    results: dict[str, Row]
    commands: Commands
    may_execute: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The stage's settings."""
        return self.stage.settings

    def model(self, role: str = "sft") -> str:
        """The model of an earlier stage, or the one that is given in its place."""
        if role in self.inputs:
            return str(self.inputs[role] / MODEL)
        return self.stage.sources[role][0]


def write_lines(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines; returns how many. Whole, since the stage's ``done.json`` comes after it."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_lines(path: Path) -> Iterator[Row]:
    """Rows of a JSON lines file."""
    return (row for _, row in read_rows(path))
