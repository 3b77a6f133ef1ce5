"""``sparsepo reasoning`` on local tasks, ``sparsepo humanrank`` on local questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, write_rows
from tests.evaluation.test_leaderboard import write_task
from tests.support import tiny_model, tiny_tokenizer

Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    tiny_model("gpt2", seed=5, head_scale=8.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_before_and_after_on_a_local_task(
    sparsepo: Call, tmp_path: Path, model_folder: Path, other_folder: Path
) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    tasks.mkdir()
    write_task(tasks, "leaderboard_mmlu_pro", rows=9)
    arguments = [
        "reasoning", other_folder, "--before", model_folder, "--tasks", "leaderboard_mmlu_pro",
        "--include_path", tasks, "--output", out, "--use_cpu",
    ]  # fmt: skip
    first = sparsepo(*arguments)
    assert first.status == 0, first.err
    assert "MMLU-PRO" in first.out
    assert "difference" in first.out
    content = json.loads((out / "reasoning.json").read_text(encoding="utf-8"))
    own, task = content["benchmarks"]["MMLU-PRO"], content["tasks"]["leaderboard_mmlu_pro"]["acc"]
    assert own["difference"]["value"] == pytest.approx(own["after"]["value"] - own["before"]["value"])
    for side in ("before", "after"):
        assert own[side]["value"] == pytest.approx(max(0, 100 * (task[side]["value"] - 0.1) / 0.9))
    assert (out / "reasoning.csv").read_text(encoding="utf-8").startswith("name,metric,side,value,stderr\n")
    again = sparsepo(*arguments)
    assert again.out.count("was there") == 2
    assert json.loads((out / "reasoning.json").read_text(encoding="utf-8")) == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "nothing"], "lm-eval has no task or group 'nothing'"),
        (["--tasks", "broken"], "1 of 1 tasks cannot be loaded"),
        (["--tasks", "broken", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--include_path", "gone"], "--include_path gone: no such folder"),
        (["--tasks", "torn"], "no task or group 'torn'. Did you mean broken? Not read: "),
        (["--tasks", "broken", "--chat_template"], "has no chat template; leave the flag out"),
    ],
    ids=str,
)
def test_wrong_reasoning(
    sparsepo: Call, tmp_path: Path, model_folder: Path, arguments: list[str], message: str, monkeypatch: Any
) -> None:
    from lm_eval.tasks import TaskManager

    import sparsepo.evaluation.leaderboard.running as running

    write_task(tmp_path, "broken", data=str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "torn.yaml").write_text("task: [torn\n  x: {")
    # without lm-eval's own tasks, which take seconds to read
    monkeypatch.setattr(
        running, "_manager_class", lambda: lambda **given: TaskManager(**{**given, "include_defaults": False})
    )
    include = [] if "--include_path" in arguments else ["--include_path", tmp_path]
    result = sparsepo("reasoning", model_folder, *include, *arguments)
    assert result.status == 1
    assert message in " ".join(result.err.split())


QUESTION = {
    "question": "the film ?",
    "answers": [{"text": "good", "votes": 3}, {"text": "bad and slow", "votes": "-1"}],
}


def test_humanrank_of_two_models(sparsepo: Call, tmp_path: Path, model_folder: Path, other_folder: Path) -> None:
    rows = [
        {**QUESTION, "question": f"the {word} ?", "topic": "arts" if word == "film" else None}
        for word in ("film", "story", "actor")
    ]
    data, out = write_rows(tmp_path / "python.jsonl", rows), tmp_path / "out"
    arguments = ["humanrank", f"a={model_folder}", f"b={other_folder}", "--data", data, "--output", out, "--use_cpu"]
    result = sparsepo(*arguments)
    assert result.status == 0, result.err
    content = json.loads((out / "humanrank.json").read_text(encoding="utf-8"))
    assert list(content["models"]["a"]) == ["arts", "python", "all questions"]
    values = content["models"]["a"]["all questions"]
    assert values["count"] == 3
    assert abs(values["value"]) <= 1  # two answers: each question has 1 or −1
    assert list(content["differences"]) == ["b − a"]
    kept = {path: path.stat().st_mtime_ns for path in (out / "scores").rglob("*.json")}
    assert sparsepo(*arguments).status == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_questions_longer_than_the_model(sparsepo: Call, tmp_path: Path, model_folder: Path) -> None:
    """A limit beyond the model's positions is theirs: tokens behind them have no embedding."""
    long = write_rows(tmp_path / "q.jsonl", [{**QUESTION, "question": "the film was good " * 60}])
    arguments = ("humanrank", f"a={model_folder}", "--data", long, "--use_cpu", "--output")
    results = [
        sparsepo(*arguments, tmp_path / name, *more) for name, more in {"one": (), "two": ("--max_length", 999)}.items()
    ]
    assert [result.status for result in results] == [0, 0], results
    assert "a: max_length 999 → 128: the model has no more positions" in results[1].out
    one, two = (json.loads((tmp_path / name / "humanrank.json").read_text())["models"] for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("command", ["humanrank", "reasoning"])
def test_a_model_without_a_tokenizer(sparsepo: Call, tmp_path: Path, command: str) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    write_task(tmp_path, "mine", rows=2)
    data = write_rows(tmp_path / "q.jsonl", [QUESTION])
    more = ("--data", data) if command == "humanrank" else ("--tasks", "mine", "--include_path", tmp_path)
    result = sparsepo(command, tmp_path / "model", *more, "--use_cpu")
    assert result.status == 1
    assert "the folder holds no tokenizer files" in result.err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": QUESTION["answers"]}, "row 1: 'question' must be a text"),
        ({"question": "q", "answers": ["a", "b"]}, "row 1: 'answers' must be a list of objects"),
        ({"question": "q", "answers": [{"text": "a"}, {"text": "b", "votes": 1}]}, "an answer has no 'votes'"),
        ({"question": "q", "answers": [{"text": "a", "votes": 1}]}, "two answers at least"),
        ({"question": "q", "answers": [{"text": "a", "votes": "x"}, {"text": "b", "votes": 1}]}, "could not convert"),
    ],
    ids=str,
)
def test_wrong_questions_are_named(
    sparsepo: Call, tmp_path: Path, model_folder: Path, row: dict[str, Any], message: str
) -> None:
    result = sparsepo("humanrank", model_folder, "--data", write_rows(tmp_path / "q.jsonl", [row]))
    assert result.status == 1
    assert message in " ".join(result.err.split())
