"""Plans: a stage's key is what it depends on, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsepo.experiments.pipeline.stages import Plan, Stage, changes, digest_of


def plan(source: str = "name", margin: float = 0.3, rate: float = 1e-4, prompts: int = 4) -> Plan:
    """data → pairs → two runs and their evaluations; sft beside."""
    stages = [
        Stage("data", "data", "rows", {}, {"rows": [source]}),
        Stage("sft", "sft", "sft", {"flags": {"learning_rate": 1e-3}}, needs={"data": "data"}),
        Stage("pairs", "pairs", "pairs", {"margin": margin}, needs={"data": "data"}),
    ]
    for beta in (0.1, 0.5):
        row = {"method": "DPO", "beta": beta, "seed": 0}
        flags = {"beta": beta, "learning_rate": rate}
        stages.append(
            Stage(f"train {beta}", "train", "train", {"flags": flags}, {}, {"sft": "sft", "pairs": "pairs"}, row)
        )
        needs = {"train": f"train {beta}", "sft": "sft", "data": "data"}
        stages.append(Stage(f"evaluate {beta}", "evaluate", "evaluate", {"prompts": prompts}, {}, needs, row))
    return Plan.of("sentiment", "small", stages)


def changed(first: Plan, second: Plan) -> set[str]:
    return {name for name in first.keys if first.keys[name] != second.keys[name]}


def test_a_setting_changes_its_stage_and_those_behind_it() -> None:
    runs = {"train 0.1", "train 0.5", "evaluate 0.1", "evaluate 0.5"}
    assert changed(plan(), plan()) == set()
    assert changed(plan(), plan(margin=0.5)) == {"pairs", *runs}
    assert changed(plan(), plan(rate=1e-3)) == runs
    assert changed(plan(), plan(prompts=8)) == {"evaluate 0.1", "evaluate 0.5"}
    assert changed(plan(), plan("other")) == set(plan().keys)
    assert plan().depending(["pairs"]) == ["train 0.1", "evaluate 0.1", "train 0.5", "evaluate 0.5"]


def test_where_a_file_lies_does_not_matter_what_it_holds_does(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path, text in zip(paths, ("x", "x", "y"), strict=True):
        path.write_text(text)
    first, moved, other = (plan(str(path)) for path in paths)
    assert changed(first, moved) == set()
    assert changed(first, other) == set(first.keys)


def test_folders_are_told_apart_by_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for number, (name, text) in enumerate((("m.json", "1"), ("m.json", "2"), ("n.json", "1"))):
        folder = tmp_path / str(number) / "inner"
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
        digests.add(digest_of(str(tmp_path / str(number))))
    assert len(digests) == 3
    assert digest_of("owner/model") == "hub:owner/model"


def test_what_changed_is_said() -> None:
    before = json.loads(json.dumps(plan().to_json()))  # as it is read back
    assert changes(before, plan()) == []
    (line,) = changes(before, plan(margin=0.5))
    assert line == "pairs: margin 0.3 → 0.5: done again, and with it 4 stages that need it"
    lines = changes(before, plan(rate=1e-3))
    assert [line.split(": done")[0] for line in lines] == [
        "train 0.1: flags.learning_rate 0.0001 → 0.001",
        "train 0.5: flags.learning_rate 0.0001 → 0.001",
    ]
    assert all(line.endswith("and with it 1 stage that needs it") for line in lines)
    assert changes(before, plan("other"))[0].startswith('data: rows ["hub:name"] → ["hub:other"]')


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage("a", "data", "rows"), Stage("a", "data", "rows")], "Two stages"),
        ([Stage("a", "data", "rows", needs={"x": "b"}), Stage("b", "data", "rows")], "does not come before"),
    ],
)
def test_plans_that_cannot_be(stages: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.of("sentiment", "small", stages)
