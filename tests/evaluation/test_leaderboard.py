"""Leaderboard scores: normalisation as documented, standard errors, and lm-eval run on local tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsepo.evaluation.leaderboard import BENCHMARKS, TaskResult, average, normalised, raw
from sparsepo.evaluation.leaderboard.estimates import Estimate, mean_of, ratio
from sparsepo.evaluation.leaderboard.normalising import normalise
from sparsepo.evaluation.leaderboard.results import from_lm_eval
from sparsepo.evaluation.leaderboard.running import check_loadable, expanded, run_job, task_manager, task_state
from sparsepo.inspection.leaderboard_tables import AVERAGE, csv_text, report, tables
from tests.support import tiny_model, tiny_tokenizer

BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def result(task: str, metric: str, values: Any, documents: str = "d", **more: Any) -> TaskResult:
    """A task with these numbers, one a document (a list: several judgements)."""
    rows = [[float(np.sum(v)), float(np.size(v))] for v in values]
    value = sum(r[0] for r in rows) / sum(r[1] for r in rows)
    return TaskResult(task, 1.0, 0, documents, {metric: rows, **more}, {metric: {"value": value, "stderr": None}})


def share(right: int, of: int) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


# ---- normalisation ----


def test_the_documents_own_examples() -> None:
    assert normalise(0.6, 0.25) == pytest.approx(46.67, abs=0.01)  # GPQA
    assert normalise(0.2, 0.25) == 0.0
    musr = {
        "leaderboard_musr_murder_mysteries": share(7, 10),
        "leaderboard_musr_object_placements": share(4, 10),
        "leaderboard_musr_team_allocation": share(6, 10),
    }
    found = normalised(BY_NAME["MUSR"], {task: result(task, "acc_norm", own) for task, own in musr.items()})
    assert found is not None
    assert found.value == pytest.approx(35.0, abs=0.02)  # 40, 25 and 40 (0.333 there stands for 1/3)


def test_parts_are_clipped_before_they_are_averaged() -> None:
    tasks = BY_NAME["MUSR"].tasks
    found = normalised(
        BY_NAME["MUSR"],
        {task: result(task, "acc_norm", share(n, 10)) for task, n in zip(tasks, (0, 0, 10), strict=True)},
    )
    assert found is not None
    assert found.value == pytest.approx(100 / 3)


def test_gpqa_and_math_are_pooled_over_their_documents() -> None:
    sizes = dict(zip(BY_NAME["GPQA"].tasks, ((9, 10), (10, 40), (10, 50)), strict=True))
    own = {task: result(task, "acc_norm", share(*size)) for task, size in sizes.items()}
    found = normalised(BY_NAME["GPQA"], own)
    assert found is not None
    assert found.value == pytest.approx(100 * (0.29 - 0.25) / 0.75)
    tasks = BY_NAME["MATH Lvl 5"].tasks
    math = {task: result(task, "exact_match", share(1, n + 2)) for n, task in enumerate(tasks)}
    pooled = normalised(BY_NAME["MATH Lvl 5"], math)
    assert pooled is not None
    assert pooled.value == pytest.approx(100 * 7 / sum(n + 2 for n in range(7)))


def test_ifeval_is_the_mean_of_its_strict_accuracies() -> None:
    instructions = [[1, 1, 0], [1], [0, 0]]
    own = result(
        "leaderboard_ifeval",
        "inst_level_strict_acc",
        instructions,
        prompt_level_strict_acc=[[float(all(one)), 1.0] for one in instructions],
    )
    found = normalised(BY_NAME["IFEval"], {"leaderboard_ifeval": own})
    assert found is not None
    assert found.value == pytest.approx(100 * (3 / 6 + 1 / 3) / 2)


def test_the_tasks_are_lm_evals_and_all_of_them() -> None:
    from lm_eval.tasks import TaskManager

    folder = Path(__import__("lm_eval").__file__).parent / "tasks" / "leaderboard"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    assert sorted(expanded(["leaderboard"], manager)) == sorted(task for b in BENCHMARKS for task in b.tasks)
    for benchmark in BENCHMARKS:
        for part in benchmark.parts:
            config = manager.task_index[part.task].cfg
            assert config is not None
            assert part.metric in [metric["metric"] for metric in config["metric_list"]], part
    assert len(BY_NAME["BBH"].parts) == 24


def test_the_average_needs_all_six() -> None:
    own = {
        part.task: result(part.task, part.metric, share(1, 2))
        for benchmark in BENCHMARKS
        for part in benchmark.parts
        if benchmark.name != "IFEval"
    }
    assert average(own) is None
    own["leaderboard_ifeval"] = result(
        "leaderboard_ifeval", "inst_level_strict_acc", share(1, 2), prompt_level_strict_acc=[[1.0, 1.0], [0.0, 1.0]]
    )
    scores = [normalised(benchmark, own) for benchmark in BENCHMARKS]
    found = average(own)
    assert found is not None
    assert found.value == pytest.approx(np.mean([score.value for score in scores if score is not None]))


# ---- standard errors ----


def test_errors_of_a_mean_are_the_textbooks() -> None:
    values = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    found = raw(result("t", "acc", values), "acc")
    assert found.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(5))
    assert raw(result("t", "acc", [1.0]), "acc").stderr is None


def test_errors_of_independent_parts_add_in_squares() -> None:
    rng = np.random.default_rng(0)
    parts = [ratio(f"s{n}", rng.random(20), np.ones(20)) for n in range(3)]
    expected = np.sqrt(sum(part.stderr**2 for part in parts if part.stderr is not None)) / 3
    assert mean_of(parts).stderr == pytest.approx(expected)


def test_errors_of_a_difference_are_paired() -> None:
    rng = np.random.default_rng(1)
    before, noise = (rng.random(50) < 0.5).astype(float), (rng.random(50) < 0.1)
    after = np.where(noise, 1 - before, before)
    found = ratio("t", after, np.ones(50)).minus(ratio("t", before, np.ones(50)))
    assert found.value == pytest.approx((after - before).mean())
    assert found.stderr == pytest.approx((after - before).std(ddof=1) / np.sqrt(50))
    with pytest.raises(ValueError, match="over other documents"):
        Estimate(1.0, {"t": np.zeros(3)}).minus(Estimate(1.0, {"t": np.zeros(4)}))


def test_errors_match_repeated_samples() -> None:
    """IFEval's, whose two parts are over the same prompts and whose first is a ratio."""
    rng = np.random.default_rng(2)

    def draw() -> Estimate:
        sizes = rng.integers(1, 4, size=80)
        lists = [(rng.random(size) < 0.6).astype(float) for size in sizes]
        own = result(
            "leaderboard_ifeval",
            "inst_level_strict_acc",
            lists,
            prompt_level_strict_acc=[[float(one.all()), 1.0] for one in lists],
        )
        found = normalised(BY_NAME["IFEval"], {"leaderboard_ifeval": own})
        assert found is not None
        return found

    draws = [draw() for _ in range(400)]
    claimed = np.mean([own.stderr for own in draws if own.stderr is not None])
    assert claimed == pytest.approx(np.std([own.value for own in draws], ddof=1), rel=0.12)


# ---- reports ----


def test_reports_show_differences_and_refuse_other_documents() -> None:
    after = {"mine": result("mine", "acc", share(3, 4)), "list": result("list", "f1", [0.5, 1.0])}
    before = {"mine": result("mine", "acc", share(1, 4)), "list": result("list", "f1", [0.5, 0.0])}
    content = report({"before": before, "after": after})
    assert content["tasks"]["mine"]["acc"]["difference"]["value"] == pytest.approx(0.5)
    assert content["benchmarks"] == {}
    ((header, rows),) = tables(content).values()
    assert header[-3:] == ["before", "after", "difference"]
    assert rows[0][:4] == ["mine", "acc", "0.2500 ± 0.2500", "0.7500 ± 0.2500"]
    assert csv_text(content).count("difference") == 2
    before["mine"] = result("mine", "acc", share(1, 4), documents="others")
    with pytest.raises(ValueError, match="mine: before and after are over other documents"):
        report({"before": before, "after": after})


def test_a_whole_leaderboard_is_one_table() -> None:
    own = {}
    for benchmark in BENCHMARKS:
        for part in benchmark.parts:
            more = {"prompt_level_strict_acc": [[1.0, 1.0]] * 4} if part.task == "leaderboard_ifeval" else {}
            if part.metric != "prompt_level_strict_acc":
                own[part.task] = result(part.task, part.metric, share(3, 4), **more)
    content = report({"after": own})
    assert list(content["benchmarks"]) == [*BY_NAME, AVERAGE]
    assert len(tables(content)) == 1
    json.dumps(content, allow_nan=False)


def test_metrics_that_are_no_means_keep_lm_evals_numbers() -> None:
    output = {
        "samples": {
            "t": [{"doc_id": n, "filter": "none", "doc_hash": str(n), "acc": n % 2, "f1": n} for n in range(4)]
        },
        "results": {
            "t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.3, "f1,none": 0.9, "f1_stderr,none": "N/A"}
        },
        "versions": {"t": 1},
        "n-shot": {"t": 0},
    }
    found = from_lm_eval("t", output)
    assert set(found.rows) == {"acc"}
    assert found.reported["f1"] == {"value": 0.9, "stderr": None}
    with pytest.raises(ValueError, match="t gave no f1; it has acc"):
        found.arrays("f1")
    content = report({"before": {"t": found}, "after": {"t": found}})
    assert "difference" not in content["tasks"]["t"]["f1"]
    assert content["tasks"]["t"]["f1"]["after"] == {"value": 0.9, "stderr": None}


# ---- lm-eval itself ----


def write_task(folder: Path, name: str, rows: int = 6, data: str | None = None) -> None:
    """A multiple-choice task with its data beside it."""
    path = folder / f"{name}.jsonl"
    choices = ["good", "bad", "quick slow"]
    lines = [
        {"question": f"the {'film' if n % 2 else 'story'} was", "answer": n % 3, "choices": choices}
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        f"""task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data or path}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata: {{version: 1.0}}
""",
        encoding="utf-8",
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets makes of local files stays in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_local_task_runs_offline_with_lm_evals_own_numbers(tmp_path: Path) -> None:
    """A task that bears a name of the leaderboard takes its place."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    name = "leaderboard_mmlu_pro"
    write_task(tmp_path, name, rows=7)
    manager = task_manager([name], tmp_path)
    model, tokenizer = tiny_model("gpt2", head_scale=5.0), tiny_tokenizer()
    (found,) = run_job(name, model, tokenizer, manager, batch_size=4)
    output = simple_evaluate(HFLM(pretrained=model, tokenizer=tokenizer), tasks=[name], task_manager=manager)
    assert output is not None
    own, theirs = raw(found, "acc"), output["results"][name]
    assert own.value == pytest.approx(theirs["acc,none"])
    assert own.stderr == pytest.approx(theirs["acc_stderr,none"])
    assert len(found.rows["acc"]) == 7
    assert TaskResult(**json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()
    score = normalised(BY_NAME["MMLU-PRO"], {name: found})
    assert score is not None
    assert score.value == pytest.approx(normalise(own.value, 0.1))


def test_groups_are_taken_apart(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_task(tmp_path, name)
    (tmp_path / "inner.yaml").write_text("group: inner\ntask: [a, b]\n", encoding="utf-8")
    (tmp_path / "outer.yaml").write_text("group: outer\ntask: [inner, c]\n", encoding="utf-8")
    manager = task_manager(["outer"], tmp_path)
    assert expanded(["outer", "a"], manager) == ["a", "b", "c"]
    check_loadable(["a", "b", "c"], manager)


def test_a_tasks_state_changes_with_its_data(tmp_path: Path) -> None:
    write_task(tmp_path, "mine")
    manager = task_manager(["mine"], tmp_path)
    before = task_state("mine", manager)
    assert task_state("mine", task_manager(["mine"], tmp_path)) == before
    write_task(tmp_path, "mine", rows=7)
    assert task_state("mine", manager) != before


def test_data_that_are_missing_are_named_before_any_model_runs(tmp_path: Path) -> None:
    write_task(tmp_path, "fine")
    write_task(tmp_path, "broken", data=str(tmp_path / "nowhere.jsonl"))
    manager = task_manager(["fine", "broken"], tmp_path)
    with pytest.raises(ValueError, match=r"1 of 2 tasks cannot be loaded:\n  broken: "):
        check_loadable(["fine", "broken"], manager)
