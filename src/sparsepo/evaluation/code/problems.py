"""Problems of HumanEval and MBPP: what a model is asked, and how its program is tested."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsepo.data import DataError
from sparsepo.data.reading import read_rows

from ..sandbox import TestJob
from ..stopping import cut_at

# HumanEval's, from Chen et al. 2021: what begins where the function has ended
_HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# After the prompt "task", which shows no solved problem: tests, output or prose of the model's own end a program
TASK_STOP: tuple[str, ...] = ("\nassert ", "\nprint(", '\n"""', "\nif __name__", "\n#", "<|endoftext|>")
_MBPP_STOP: tuple[str, ...] = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```")
_FEW_SHOT_STOP: tuple[str, ...] = ("[DONE]",)
_HUB = {"humaneval": ("openai/openai_humaneval", None), "mbpp": ("google-research-datasets/mbpp", "full")}
# MBPP's parts by task (Austin et al. 2021): the first ten are for prompts
MBPP_SPLITS = {"test": (11, 510), "validation": (511, 600), "train": (601, 974), "all": (1, 10**9)}
SHOTS = (2, 3, 4)
MBPP_PROMPTS = ("few_shot", "docstring", "task")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Args:
        task_id: its name in the benchmark.
        prompt: what the model continues.
        before: what stands before the completion in the program.
        stop: texts at which a completion ends.
        job: the tests.
        solution: the reference completion, if the file holds one.
    """

    task_id: str
    prompt: str
    before: str
    stop: tuple[str, ...]
    job: TestJob
    solution: str | None

    def program(self, completion: str) -> str:
        """The program that a completion makes."""
        return self.before + completion


def load_problems(
    benchmark: str, data: str | None = None, *, prompt: str = "few_shot", split: str = "test"
) -> list[Problem]:
    """Problems in the order of their file.

    Args:
        benchmark: ``humaneval`` or ``mbpp``.
        data: a file (JSONL, JSON, Parquet; also .gz) with the benchmark's own columns; None: from the hub.
        prompt: of MBPP: ``few_shot``: three solved problems before, as Austin et al. 2021 ask; ``docstring``: task and tests
            as a docstring; ``task``: task and first test, as ``sparsepo data code-pairs`` writes prompts.
        split: of MBPP: ``test``, ``validation``, ``train`` or ``all``.

    Raises:
        DataError: a column is missing or its content is no Python (names the row).
    """
    if benchmark not in _HUB:
        raise DataError(f"benchmark={benchmark!r} is not one of {', '.join(_HUB)}.")
    rows = _rows(benchmark, data)
    where = data or _HUB[benchmark][0]
    if benchmark == "humaneval":
        return [_humaneval(row, f"{where}, problem {place}") for place, row in enumerate(rows, 1)]
    return _mbpp_problems(rows, where, prompt, split)


def _rows(benchmark: str, data: str | None) -> list[Mapping[str, Any]]:
    if data is not None:
        if not Path(data).is_file():
            raise DataError(f"No file {data}; give the benchmark's problems as JSONL (or .gz), JSON or Parquet.")
        rows: list[Mapping[str, Any]] = [row for _, row in read_rows(Path(data))]
    else:
        import datasets

        name, configuration = _HUB[benchmark]
        parts = datasets.load_dataset(name, configuration)
        rows = [row for part in parts.values() for row in part]
    if not rows:
        raise DataError(f"{data}: no problems.")
    return rows


def _field(row: Mapping[str, Any], where: str, *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"{where}: no column {' or '.join(names)}; it has {', '.join(row)}.")


def _humaneval(row: Mapping[str, Any], where: str) -> Problem:
    prompt, entry = _field(row, where, "prompt"), _field(row, where, "entry_point")
    # The prompt's own helpers are run apart from the program: a program that changes them fools no test
    preamble = _parsed(prompt, where) + "\n" + _parsed(_field(row, where, "test"), where)
    job = TestJob((entry,), (f"check({entry})",), preamble)
    task = str(_field(row, where, "task_id"))
    return Problem(task, prompt, prompt, _HUMANEVAL_STOP, job, row.get("canonical_solution"))


def mbpp_task(row: Mapping[str, Any]) -> str:
    """Task and first test: the shortest prompt."""
    return f"{_text(row)}\n{row['test_list'][0].strip()}\n"


def mbpp_job(row: Mapping[str, Any], where: str) -> TestJob:
    """The tests of a row of MBPP.

    Raises:
        DataError: no Python, or tests that call nothing.
    """
    tests = [_parsed(test, where) for test in _field(row, where, "test_list")]
    preamble = _parsed("\n".join([*(row.get("test_imports") or ()), row.get("test_setup_code") or ""]), where)
    known = _defined(preamble) | set(dir(builtins))
    used = {name for test in tests for name in _names(test)}
    solution = row.get("code")
    # The program may well define a name that Python has too (sum, say): the reference solution tells
    functions = used & _defined(_parsed(solution, where), imports=False) if solution else set()
    modules = {name for name in used - known - functions if name in sys.stdlib_module_names}
    functions = functions or used - known - modules
    if not functions:
        raise DataError(f"{where}: its tests call no function that a program is to define.")
    return TestJob(tuple(sorted(functions)), tuple(tests), preamble, tuple(sorted(modules)))


def mbpp_solution(row: Mapping[str, Any]) -> str:
    """The reference solution, with one kind of line break."""
    return str(row["code"]).replace("\r\n", "\n").strip() + "\n"


def program_of(text: str, stop: Sequence[str] = TASK_STOP) -> str:
    """The program at the beginning of a completion, up to where the model goes on with something else."""
    cut = cut_at(text, stop)
    return cut if len(cut) == len(text) else f"{cut}\n"


def mbpp_rows(data: str, split: str = "all") -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of a file of MBPP, each with where it stands."""
    return [(where, row) for where, row in _split(_rows("mbpp", data), data, split)]


def _split(rows: Sequence[Mapping[str, Any]], where: str, split: str) -> list[tuple[str, Mapping[str, Any]]]:
    if split not in MBPP_SPLITS:
        raise DataError(f"split={split!r} is not one of {', '.join(MBPP_SPLITS)}.")
    first, last = MBPP_SPLITS[split]
    placed = [(f"{where}, task {row.get('task_id')}", row) for row in rows]
    found = [(place, row) for place, row in placed if first <= int(_field(row, place, "task_id")) <= last]
    if not found:
        raise DataError(f"{where}: no task of the split {split} ({first} to {last}).")
    return found


def _mbpp_problems(rows: Sequence[Mapping[str, Any]], where: str, prompt: str, split: str) -> list[Problem]:
    if prompt not in MBPP_PROMPTS:
        raise DataError(f"prompt={prompt!r} is not one of {', '.join(MBPP_PROMPTS)}.")
    examples = _shots(rows, where) if prompt == "few_shot" else ""
    found = []
    for place, row in _split(rows, where, split):
        job = mbpp_job(row, place)
        if prompt == "few_shot":
            asked, stop = examples + _shot(row, ""), _FEW_SHOT_STOP
        elif prompt == "docstring":
            tests = "\n".join(test.strip() for test in row["test_list"])
            asked, stop = f'"""\n{_text(row)}\n{tests}\n"""\n', _MBPP_STOP
        else:
            asked, stop = mbpp_task(row), TASK_STOP
        solution = mbpp_solution(row) if row.get("code") else None
        found.append(Problem(str(row["task_id"]), asked, "", stop, job, solution))
    return found


def _shots(rows: Iterable[Mapping[str, Any]], where: str) -> str:
    by_task = {int(row["task_id"]): row for row in rows}
    missing = [task for task in SHOTS if task not in by_task]
    if missing:
        raise DataError(
            f"{where}: the few-shot prompt shows tasks {', '.join(map(str, SHOTS))}, and {missing[0]} is not there; take "
            "prompt docstring or task."
        )
    return "".join(f"{_shot(by_task[task], mbpp_solution(by_task[task]).rstrip())}\n[DONE]\n\n" for task in SHOTS)


def _shot(row: Mapping[str, Any], code: str) -> str:
    """The published template (Austin et al. 2021, section 3)."""
    tests = "\n".join(test.strip() for test in row["test_list"])
    asked = "You are an expert Python programmer, and here is your task:"
    return f"{asked} {_text(row)} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n{code}"


def _text(row: Mapping[str, Any]) -> str:
    return str(row.get("text") or row["prompt"]).strip()


def _parsed(source: str, where: str) -> str:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{where}: no Python ({error}): {source[:60]!r}") from error
    return source


def _names(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _defined(source: str, imports: bool = True) -> set[str]:
    """Names that a program defines, or imports, at its top level."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and imports:
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return found
