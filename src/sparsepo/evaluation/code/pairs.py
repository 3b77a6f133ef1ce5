"""Preference pairs of programs: MBPP's reference solutions against mutants of them, each really run with its tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from sparsepo.data import DataError
from sparsepo.data.mutations import Mutant, choose, mutants_of

from ..sandbox import Outcome
from .execution import Executor, Progress
from .problems import mbpp_job, mbpp_solution, mbpp_task

Row = dict[str, Any]
TRIES = 2  # mutants that are tried for each that is wanted: some change nothing that the tests see
Result = TypeVar("Result")


def tried(
    candidates: Sequence[tuple[str, Sequence[Mutant]]],
    run: Callable[[Sequence[tuple[int, str]]], Iterable[Result]],
) -> Iterator[tuple[Result, list[tuple[Mutant, Result]]]]:
    """Run solutions and their mutants against the tests of their problems, all in one go.

    Args:
        candidates: of each problem its solution and mutants.
        run: (number of a problem, program) of all → what came of each, in order.

    Returns:
        For each problem what came of its solution, and each mutant with what came of it.
    """
    asked = [
        (place, code)
        for place, (solution, mutants) in enumerate(candidates)
        for code in (solution, *(mutant.code for mutant in mutants))
    ]
    results = iter(run(asked))
    for _, mutants in candidates:
        own = next(results)
        yield own, [(mutant, next(results)) for mutant in mutants]


def mutant_row(prompt: str, solution: str, mutant: Mutant) -> Row:
    """A pair: ``span`` is the change's place in ``rejected``, ``before`` and ``after`` what it replaced, and by what."""
    return {
        "prompt": prompt,
        "chosen": solution,
        "rejected": mutant.code,
        "span": list(mutant.span),
        "before": mutant.before,
        "after": mutant.after,
    }


@dataclass
class PairReport:
    """What was made and what was left out.

    Args:
        tasks: in the file.
        pairs: made.
        failing_solutions: tasks whose reference solution fails here, with what went wrong.
        no_pair: tasks of which no mutant fails.
        surviving: mutants that pass all tests: their change does not matter, or the tests do not see it.
        kinds: how the rejected programs fail.
    """

    tasks: int = 0
    pairs: int = 0
    failing_solutions: list[str] = field(default_factory=list)
    no_pair: int = 0
    surviving: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [f"{self.tasks} tasks → {self.pairs} pairs; {self.surviving} mutants pass all tests and are left out"]
        if self.kinds:
            found.append("rejected programs fail by " + ", ".join(f"{k} ({n})" for k, n in self.kinds.most_common()))
        if self.no_pair:
            found.append(f"{self.no_pair} tasks have no mutant that fails")
        if self.failing_solutions:
            found.append(
                f"{len(self.failing_solutions)} reference solutions fail: {'; '.join(self.failing_solutions[:3])}"
            )
        return found


def code_pairs(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    executor: Executor,
    *,
    count: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Row], PairReport]:
    """Pairs of a passing and a failing program that differ in one place.

    Args:
        rows: of MBPP, with reference solutions, each with where it stands.
        executor: runs programs.
        count: most pairs of a task.
        seed: of the draw of mutants; each task's depends on it and the task alone.
        progress: called after each program.

    Returns:
        Rows of ``prompt``, ``chosen``, ``rejected``, ``task_id``, ``span`` (the change's place in ``rejected``), ``before``
        and ``after`` (what it replaced, and by what), ``failure`` (how it fails), ``tests_passed`` (a share); and a report.

    Raises:
        DataError: a row has no reference solution.
    """
    if count < 1:
        raise DataError(f"count={count} must be at least 1.")
    candidates: list[tuple[str, list[Mutant]]] = []
    jobs = []
    for where, row in rows:
        if not row.get("code"):
            raise DataError(f"{where}: no reference solution (column code).")
        code = mbpp_solution(row)
        found = mutants_of(code)
        rng = np.random.default_rng([seed, int(row["task_id"])])
        candidates.append((code, choose(found, rng, min(TRIES * count, len(found)))))
        jobs.append(mbpp_job(row, where))

    def run(asked: Sequence[tuple[int, str]]) -> list[Outcome]:
        return executor.run([(code, jobs[place]) for place, code in asked], progress=progress)

    report, pairs = PairReport(tasks=len(candidates)), []
    for (_, row), (code, drawn), (reference, results) in zip(rows, candidates, tried(candidates, run), strict=True):
        if not reference.passed:
            report.failing_solutions.append(f"task {row['task_id']} ({reference.kind})")
            continue
        failing = [(mutant, one) for mutant, one in results if not one.passed]
        report.surviving += len(drawn) - len(failing)
        report.no_pair += not failing
        for mutant, one in failing[:count]:
            report.kinds[one.kind] += 1
            pairs.append(
                {
                    **mutant_row(mbpp_task(row), code, mutant),
                    "task_id": row["task_id"],
                    "failure": one.kind,
                    "tests_passed": sum(one.tests) / len(one.tests),
                }
            )
    report.pairs = len(pairs)
    return pairs, report
