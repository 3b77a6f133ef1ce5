"""Data, pairs, reward model and programs of a task: what is held out stays held out."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsepo.experiments.pipeline.jobs import Job, read_lines
from sparsepo.experiments.pipeline.preparing import make_pairs, prepare_rows
from sparsepo.experiments.pipeline.programs import mutant_pairs, pass_rates, prepare_problems, program_of, which_pass
from sparsepo.experiments.pipeline.reward_stage import _labelled
from sparsepo.experiments.pipeline.sections import PAIRS, PREPARE, check_section
from sparsepo.experiments.pipeline.stages import Stage
from sparsepo.experiments.pipeline.task_evaluations import rouge_l
from tests.experiments.test_pipeline_working import NoCommands


def job(
    folder: Path, action: str, settings: dict[str, Any], rows: list[dict[str, Any]] | None = None, **inputs: Any
) -> Job:
    """A job in ``folder/action``; ``rows`` become its source, ``inputs`` are (folder, result) by role."""
    own = folder / action
    own.mkdir()
    sources = {}
    if rows is not None:
        path = folder / f"{action}_rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = {"rows": [str(path)]}
    return Job(
        Stage(action, "data", action, settings, sources),
        own,
        {role: given[0] for role, given in inputs.items()},
        {role: given[1] for role, given in inputs.items()},
        NoCommands(),
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(read_lines(path))


def scored(prompts: int = 10) -> list[dict[str, Any]]:
    return [
        {"prompt": f"prompt {number}", "text": f"text {value}", "reward": value}
        for number in range(prompts)
        for value in (0.1, 0.9, 0.5)
    ]


def test_scored_rows_are_split_by_prompt(tmp_path: Path) -> None:
    settings = check_section(PREPARE["sentiment"], {"eval_fraction": 0.3, "sft_texts": "chosen"}, "prepare")
    bad = [{"prompt": "prompt 0", "text": " ", "reward": 1.0}, {"prompt": "prompt 1", "text": "x", "reward": None}]
    data = job(tmp_path, "rows", settings, scored() + bad)
    found = prepare_rows(data)
    train, held_out = (rows_of(data.folder / f"{part}.jsonl") for part in ("train", "held_out"))
    assert len(train) + len(held_out) == 30
    assert found["held_out_prompts"] == 3
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    texts = rows_of(data.folder / "sft.jsonl")
    assert [row["completion"] for row in texts] == [" text 0.9"] * 7  # the best of each training prompt
    assert not {row["prompt"] for row in texts} & {row["prompt"] for row in held_out}
    prompts = rows_of(data.folder / "prompts.jsonl")
    assert sorted(row["prompt"] for row in prompts) == sorted({row["prompt"] for row in held_out})
    assert {row["reference"] for row in prompts} == {" text 0.9"}

    own = check_section(PAIRS["sentiment"], {"strategy": "threshold", "margin": 0.5, "train_pairs": 4}, "pairs")
    pairs = job(tmp_path, "pairs", own, None, data=(data.folder, found))
    assert make_pairs(pairs)["train"] == 4
    assert len(rows_of(pairs.folder / "held_out.jsonl")) == 3
    own["margin"] = 5.0
    with pytest.raises(ValueError, match=r"lower pairs\.margin=5\.0"):
        make_pairs(pairs)


def test_dialogues_are_split_at_the_last_answer(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"\n\nHuman: q{n}\n\nAssistant: yes", "rejected": f"\n\nHuman: q{n}\n\nAssistant: no"}
        for n in range(8)
    ]
    settings = check_section(PREPARE["dialogue"], {"eval_fraction": 0.25, "train_prompts": 5}, "prepare")
    data = job(tmp_path, "rows", settings, rows)
    found = prepare_rows(data)
    assert (found["kind"], found["train"], found["held_out"]) == ("preference", 5, 2)
    assert rows_of(data.folder / "sft.jsonl")[0]["completion"] == " yes"
    assert rows_of(data.folder / "prompts.jsonl")[0]["reference"] == " yes"
    pairs = job(tmp_path, "pairs", check_section(PAIRS["dialogue"], {}, "pairs"), None, data=(data.folder, found))
    assert make_pairs(pairs)["held_out"] == 2
    first = rows_of(pairs.folder / "train.jsonl")[0]
    assert first["prompt"].endswith("Assistant:")
    assert (first["chosen"], first["rejected"]) == (" yes", " no")


def problems(count: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "task_id": number,
            "text": f"Add {number}.",
            "code": f"def add{number}(x):\r\n    return x + {number + 2}",
            "test_list": [f"assert add{number}(1) == {number + 3}", f"assert add{number}(2) == {number + 4}"],
        }
        for number in range(count)
    ]


def test_mutants_say_what_they_changed(tmp_path: Path) -> None:
    data = job(tmp_path, "problems", check_section(PREPARE["code"], {"eval_fraction": 0.25}, "prepare"), problems())
    found = prepare_problems(data)
    assert (found["train"], found["held_out"], found["sft_texts"]) == (3, 1, 3)
    prompts = rows_of(data.folder / "prompts.jsonl")
    assert prompts[0]["prompt"].count("assert") == 1  # the others stay unseen
    own = check_section(PAIRS["code"], {"check": False, "per_problem": 2}, "pairs")
    pairs = job(tmp_path, "mutants", own, None, data=(data.folder, found))
    assert mutant_pairs(pairs)["train"] == 6
    for row in rows_of(pairs.folder / "train.jsonl"):
        start, end = row["span"]
        assert row["rejected"][start:end] == row["after"]
        assert row["chosen"][start : start + len(row["before"])] == row["before"]
        assert row["chosen"] != row["rejected"]


def test_problems_that_cannot_be_tested_are_refused(tmp_path: Path) -> None:
    settings = check_section(PREPARE["code"], {"eval_fraction": 0.5}, "prepare")
    rows = [{**row, "test_list": ["assert 1 == 1"]} for row in problems()]
    with pytest.raises(ValueError, match="call no function"):
        prepare_problems(job(tmp_path, "problems", settings, rows))
    with pytest.raises(ValueError, match="code and test_list"):
        prepare_problems(job(tmp_path, "more", settings, [{"text": "t", "tests": []}] * 4))


def test_computing_decides_what_passes_and_not_waiting(tmp_path: Path) -> None:
    """A busy machine makes programs wait; that must not label correct ones as failing."""
    own = check_section(PAIRS["code"], {"timeout": 0.5}, "pairs")
    judging = replace(job(tmp_path, "judging", own), may_execute=True)
    waiting = "import time\ndef add0(x):\n    time.sleep(0.6)\n    return x + 2\n"
    computing = "def add0(x):\n    while True:\n        pass\n"
    row = {"problem": problems(1)[0]}
    assert which_pass(judging, [(row, waiting), (row, computing), (row, waiting)]) == [True, False, True]
    told = rows_of(judging.folder / "executions.jsonl")
    assert [line["kind"] for line in told] == ["passed", "timeout"]
    assert told[1]["detail"] == "more than 1 s of computing"


def test_programs_run_in_as_many_sandboxes_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsepo.evaluation.code as room

    seen = []

    class Spy:
        def __init__(self, allowed: bool, limits: Any, *, workers: int) -> None:
            seen.append(workers)

        def run(self, jobs: Any, keep: Path) -> list[Any]:
            return [SimpleNamespace(passed=True) for _ in jobs]

    monkeypatch.setattr(room, "Executor", Spy)
    for settings in ({}, {"workers": 5}):
        own = check_section(PAIRS["code"], settings, "pairs")
        judging = replace(job(tmp_path, f"judging {len(seen)}", own), may_execute=True)
        assert which_pass(judging, [({"problem": problems(1)[0]}, "x = 1\n")]) == [True]
    assert seen == [1, 5]


def test_a_checked_solution_must_pass_and_its_mutants_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsepo.experiments.pipeline import programs

    data = job(tmp_path, "problems", check_section(PREPARE["code"], {"eval_fraction": 0.25}, "prepare"), problems())
    found = prepare_problems(data)
    asked: list[str] = []

    def judge(_: Any, programs: Any) -> list[bool]:
        """The first of three problems is not solved; of the others the first mutant passes and the second fails."""
        asked.extend(code for _, code in programs)
        places = [place % 3 for place in range(len(programs))]  # a solution and its two mutants
        unsolved = 3 if len(programs) == 9 else 0
        return [place < 2 and number >= unsolved for number, place in enumerate(places)]

    monkeypatch.setattr(programs, "which_pass", judge)
    own = check_section(PAIRS["code"], {"per_problem": 1}, "pairs")
    pairs = job(tmp_path, "mutants", own, None, data=(data.folder, found))
    result = mutant_pairs(pairs)
    assert result["counts"] == {"problems": 4, "solutions that fail": 1, "mutants that pass": 3}
    rows = rows_of(pairs.folder / "train.jsonl")
    assert sorted((row["chosen"], row["rejected"]) for row in rows) == [(asked[3], asked[5]), (asked[6], asked[8])]


def test_pass_rates_are_unbiased_estimates() -> None:
    rewards = [1.0] * 5 + [0.0] * 5 + [0.0] * 10  # two problems of ten samples, five and none pass
    found = pass_rates(rewards, 10)
    assert found["pass_at_1"] == pytest.approx(0.25)
    assert found["pass_at_10"] == pytest.approx(0.5)
    assert "pass_at_100" not in found


def test_a_program_ends_where_something_else_begins() -> None:
    assert program_of("def f():\n    return 1\nassert f() == 1\n") == "def f():\n    return 1\n"
    assert program_of("def f():\n    return 1\n") == "def f():\n    return 1\n"


def test_rouge_of_rows() -> None:
    pytest.importorskip("rouge_score")
    rows = [{"reference": "a b c d"}, {"reference": "a b c d"}]
    assert rouge_l(rows, ["a b c d", "x y"]) == [100.0, 0.0]


def test_labelled_texts_are_positive_or_negative(tmp_path: Path) -> None:
    archive = tmp_path / "texts.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/x.pos", "good\nfine\n")
        file.writestr("a/x.neg", "bad\n")
    assert sorted(_labelled(str(archive))) == [("bad", 0.0), ("fine", 1.0), ("good", 1.0)]
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sport/a.txt", "ball")
        file.writestr("music/b.txt", "song")
    with pytest.raises(ValueError, match="neither pos nor neg"):
        _labelled(str(archive))
