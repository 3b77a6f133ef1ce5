"""pass@k, the benchmarks' problems, running and scoring of samples."""

from __future__ import annotations

import ast
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.data import DataError
from sparsepo.evaluation import sample_completions
from sparsepo.evaluation.code import Executor, code_reward, load_problems, pass_at_k, read_samples, score_samples
from sparsepo.evaluation.code.pairs import code_pairs
from sparsepo.evaluation.code.problems import mbpp_rows
from sparsepo.evaluation.sandbox import ExecutionNotAllowedError
from sparsepo.evaluation.stopping import cut_at

FILES = {"humaneval": "humaneval.jsonl.gz", "mbpp": "mbpp_sanitized.jsonl.gz"}
MBPP = [
    {
        "task_id": task,
        "text": f"Add {task}.",
        "code": f"def add{task}(x):\r\n    return x + {task}\r\n",
        "test_list": [f"assert add{task}(1) == {task + 1}", f"assert math.isclose(add{task}(2), {task + 2})"],
        "test_setup_code": "",
    }
    for task in (2, 3, 4, 11, 12)
]


@pytest.fixture
def mbpp_file(tmp_path: Path) -> str:
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    return str(path)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(sizes: tuple[int, int, int]) -> None:
    n, c, k = sizes
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_k_of_many_samples_and_of_what_cannot_be() -> None:
    assert pass_at_k(10**5, 1, 100) == pytest.approx(1e-3)
    assert [pass_at_k(10, c, 1) for c in (0, 3, 10)] == pytest.approx([0, 0.3, 1])
    for n, c, k in ((3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match=r"samples"):
            pass_at_k(n, c, k)


def without_bodies(program: str) -> str:
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def check_solutions(problems: list[Any]) -> None:
    executor = Executor(allow_code_execution=True)
    full = executor.run([(problem.program(problem.solution), problem.job) for problem in problems])
    assert [p.task_id for p, one in zip(problems, full, strict=True) if not one.passed] == []
    empty = executor.run([(without_bodies(problem.program(problem.solution)), problem.job) for problem in problems])
    assert [p.task_id for p, one in zip(problems, empty, strict=True) if one.passed] == []


@pytest.mark.parametrize("benchmark", list(FILES))
def test_reference_solutions_pass_and_empty_ones_fail(benchmark: str, data_folder: Path) -> None:
    problems = load_problems(benchmark, str(data_folder / FILES[benchmark]), split="all", prompt="task")
    # among them tests that use the prompt's helpers, names of Python, and modules that no one imports
    chosen = {"HumanEval/32", "HumanEval/38", "HumanEval/50", "HumanEval/33", "82", "126", "124"}
    check_solutions([p for place, p in enumerate(problems) if p.task_id in chosen or place % 60 == 0])


@pytest.mark.long
@pytest.mark.parametrize("benchmark", list(FILES))
def test_all_reference_solutions_pass_and_all_empty_ones_fail(benchmark: str, data_folder: Path) -> None:
    check_solutions(load_problems(benchmark, str(data_folder / FILES[benchmark]), split="all", prompt="task"))


def test_prompts_of_mbpp(mbpp_file: str) -> None:
    few = load_problems("mbpp", mbpp_file)
    assert [problem.task_id for problem in few] == ["11", "12"]  # the first ten are for prompts
    assert few[0].prompt.count("[BEGIN]") == 4
    assert few[0].prompt.count("[DONE]") == 3
    assert "return x + 4" in few[0].prompt
    assert "return x + 11" not in few[0].prompt
    assert few[0].prompt.endswith("[BEGIN]\n")
    assert load_problems("mbpp", mbpp_file, prompt="task")[0].prompt == "Add 11.\nassert add11(1) == 12\n"
    assert load_problems("mbpp", mbpp_file, prompt="docstring")[0].prompt.startswith('"""\nAdd 11.\nassert')
    assert few[0].job.modules == ("math",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": ["assert add11(1) =="]}, "task 11: no Python"),
        ({"test_list": None}, "no column test_list"),
        ({"code": None, "test_list": ["assert True"]}, "call no function"),
    ],
)
def test_problems_that_are_none_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps({**MBPP[3], **change}) + "\n")
    with pytest.raises(DataError, match=message):
        load_problems("mbpp", str(path), prompt="task")
    with pytest.raises(DataError, match="2 is not there"):
        load_problems("mbpp", str(path))


def test_scores_of_samples_and_results_that_are_kept(mbpp_file: str, tmp_path: Path, monkeypatch: Any) -> None:
    problems = load_problems("mbpp", mbpp_file, prompt="task")
    good = {p.task_id: p.solution for p in problems}
    samples = {"11": [good["11"], good["11"], "x =", "def add11(x): return 0"], "12": ["def add12(x): return None"] * 4}
    executor, keep = Executor(allow_code_execution=True), tmp_path / "results.jsonl"
    seen: list[tuple[int, int]] = []
    score = score_samples(problems, samples, [1, 4], executor, keep=keep, progress=lambda *done: seen.append(done))
    assert sorted(later[0] - before[0] for before, later in itertools.pairwise([(0, 8), *seen])) == [1, 1, 2, 4]
    assert seen[-1] == (8, 8)
    assert score.kinds == {"assertion": 5, "passed": 2, "syntax": 1}
    assert score.pass_at[1][0] == pytest.approx(0.25)
    assert score.pass_at[4][0] == pytest.approx(0.5)
    assert len(keep.read_text().splitlines()) == 4  # what comes twice runs once

    with keep.open("a") as file:
        file.write('{"key": "cut o')  # as an interruption leaves it
    monkeypatch.setattr("sparsepo.evaluation.code.execution.run_tests", lambda *a, **k: pytest.fail("ran again"))
    assert score_samples(problems, samples, [1, 4], executor, keep=keep) == score
    monkeypatch.undo()
    more = {**samples, "12": [good["12"], *samples["12"]]}
    assert score_samples(problems, more, [1], executor, keep=keep).kinds["passed"] == 3
    assert len(keep.read_text().splitlines()) == 5
    with pytest.raises(ValueError, match="pass@5 needs at least 5"):
        score_samples(problems, more, [5], executor)


def test_samples_from_a_file_end_at_stop_texts(mbpp_file: str, tmp_path: Path) -> None:
    problems = load_problems("mbpp", mbpp_file, prompt="task")
    path = tmp_path / "samples.jsonl"
    rows = [
        {"task_id": 11, "completion": "def f(x): pass\nprint(f(1))"},
        {"prompt": problems[1].prompt, "text": "def g(x): pass"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_samples(path, problems) == {"11": ["def f(x): pass"], "12": ["def g(x): pass"]}
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"no samples of 1 of 2 problems \(first: 12\)"):
        read_samples(path, problems)
    assert cut_at("a\nb", ["\nb", "a"]) == ""


def test_completions_end_at_stop_texts_whatever_the_batch(policy: Any, tokenizer: Any) -> None:
    prompts = ["the film", "the plot was"]
    settings: dict[str, Any] = {"max_new_tokens": 24, "samples_per_prompt": 6, "seed": 5, "temperature": 1.5}
    free = [one for group in sample_completions(policy, tokenizer, prompts, **settings) for one in group]
    word = next(w for w in free[0].text.split()[3:] if w.isalpha())
    groups = [
        sample_completions(policy, tokenizer, prompts, stop=[word], batch_size=size, **settings) for size in (1, 5, 64)
    ]
    assert groups[0] == groups[1] == groups[2]
    stopped = [one for group in groups[0] for one in group]
    for before, after in zip(free, stopped, strict=True):
        assert after.text == cut_at(before.text, [word])
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        assert after.finished == (before.finished or word in before.text)
    assert any(len(a.token_ids) < len(b.token_ids) for a, b in zip(stopped, free, strict=True))
    with pytest.raises(ValueError, match="stop"):
        sample_completions(policy, tokenizer, prompts, stop="word", **settings)


def test_tests_as_a_reward(mbpp_file: str) -> None:
    with pytest.raises(ExecutionNotAllowedError):
        code_reward(f"mbpp:{mbpp_file}")
    prompts = ["Add 11.\nassert add11(1) == 12\n"] * 3
    completions = ["def add11(x):\n    return x + 11\nprint('more')", "def add11(x): return 12", "nothing"]
    assert code_reward(f"mbpp:{mbpp_file}", allow_code_execution=True)(prompts, completions) == [1.0, 0.0, 0.0]
    partial = code_reward(f"mbpp:{mbpp_file}", allow_code_execution=True, partial=True)
    assert partial(prompts, completions) == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="Prompt 0 is that of no problem"):
        partial(["Something else"], ["x"])


def test_pairs_are_of_programs_that_pass_and_fail(mbpp_file: str) -> None:
    rows = mbpp_rows(mbpp_file)[:3]
    rows[0] = (rows[0][0], {**rows[0][1], "code": "def add2(x):\n    return x - 2\n"})  # a reference that fails
    executor = Executor(allow_code_execution=True)
    pairs, report = code_pairs(rows, executor, count=2, seed=1)
    assert report.failing_solutions == ["task 2 (assertion)"]
    assert {pair["task_id"] for pair in pairs} == {3, 4}
    jobs = {str(p.task_id): p.job for p in load_problems("mbpp", mbpp_file, prompt="task", split="all")}
    for pair in pairs:
        start, end = pair["span"]
        assert pair["rejected"][start:end] == pair["after"]
        assert pair["rejected"][:start] + pair["before"] + pair["rejected"][end:] == pair["chosen"]
        chosen, rejected = executor.run([(pair[side], jobs[str(pair["task_id"])]) for side in ("chosen", "rejected")])
        assert chosen.passed
        assert not rejected.passed
    assert code_pairs(rows, executor, count=2, seed=1)[0] == pairs
