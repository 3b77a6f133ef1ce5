"""Samples → results → pass@k with intervals over the problems, and what went wrong how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsepo.data import DataError
from sparsepo.data.reading import read_rows

from ..frontier import bootstrap_mean
from ..sampling import SamplingSettings
from ..sandbox import Outcome
from ..stopping import cut_at
from .execution import Executor, Progress
from .pass_at_k import check_ks, pass_at_k
from .problems import Problem


@dataclass(frozen=True)
class CodeSamplingSettings(SamplingSettings):
    """:class:`SamplingSettings` with stop texts."""

    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """What samples of a benchmark are worth.

    Args:
        pass_at: k → estimate and the ends of its 95 % interval (bootstrap over the problems).
        kinds: outcome → how many samples.
        outcomes: of each problem, by its samples.
    """

    pass_at: dict[int, tuple[float, float, float]]
    kinds: dict[str, int]
    outcomes: dict[str, list[Outcome]]

    def to_json(self) -> dict[str, Any]:
        """For a summary file."""
        return {
            "pass_at": {str(k): dict(zip(("value", "low", "high"), v, strict=True)) for k, v in self.pass_at.items()},
            "problems": len(self.outcomes),
            "samples": sum(map(len, self.outcomes.values())),
            "kinds": self.kinds,
            "passed": {task: sum(one.passed for one in found) for task, found in self.outcomes.items()},
        }


def read_samples(path: str | Path, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Completions of a file by task: rows of ``task_id`` and ``completion`` (or ``text``), or of ``prompt`` and ``text``.

    A completion ends before the first of its problem's stop texts, wherever it comes from.

    Raises:
        DataError: a row names no problem, or problems have no samples.
    """
    by_task = {problem.task_id: problem for problem in problems}
    by_prompt = {problem.prompt: problem for problem in problems}
    found: dict[str, list[str]] = {problem.task_id: [] for problem in problems}
    unknown = 0
    for number, row in read_rows(Path(path)):
        problem = by_task.get(str(row.get("task_id"))) or by_prompt.get(str(row.get("prompt")))
        text = row.get("completion", row.get("text"))
        if not isinstance(text, str):
            raise DataError(f"{path}, row {number}: no text in completion (or text); it has {', '.join(row)}.")
        if problem is None:
            unknown += 1
            continue
        found[problem.task_id].append(cut_at(text, problem.stop))
    without = [task for task, texts in found.items() if not texts]
    if without:
        raise DataError(
            f"{path}: no samples of {len(without)} of {len(problems)} problems (first: {without[0]}), and {unknown} rows of "
            "other problems; check benchmark, split and prompt, or give --limit."
        )
    return found


def score_samples(
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[str]],
    ks: Sequence[int],
    executor: Executor,
    *,
    keep: Path | None = None,
    draws: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Score:
    """Run every sample and estimate pass@k.

    Args:
        problems: of a benchmark.
        samples: task → completions.
        ks: the k.
        executor: runs programs.
        keep: file that results are kept in; see :meth:`Executor.run`.
        draws, seed: of the bootstrap.
        progress: called after each program.

    Raises:
        ValueError: a k that is more than the samples of some problem.
    """
    check_ks(ks, min(len(samples[problem.task_id]) for problem in problems))
    places = [(problem, text) for problem in problems for text in samples[problem.task_id]]
    results = executor.run([(problem.program(text), problem.job) for problem, text in places], keep, progress)
    outcomes: dict[str, list[Outcome]] = {problem.task_id: [] for problem in problems}
    for (problem, _), outcome in zip(places, results, strict=True):
        outcomes[problem.task_id].append(outcome)
    passed = [(len(found), sum(one.passed for one in found)) for found in outcomes.values()]
    pass_at = {}
    for k in ks:
        pass_at[k] = bootstrap_mean([[pass_at_k(n, c, k) for n, c in passed]], draws, seed)
    kinds = Counter(one.kind for found in outcomes.values() for one in found)
    return Score(pass_at, dict(kinds.most_common()), outcomes)
