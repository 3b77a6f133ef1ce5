"""Tests as a reward: what share of its problem's tests a completion passes."""

from __future__ import annotations

from collections.abc import Sequence

from ..generation import Prompt
from ..rewards import Reward
from ..stopping import cut_at
from .execution import Executor
from .problems import Problem, load_problems


class CodeReward(Reward):
    """1 for a completion that passes all tests of its problem; else 0, or the share of them with ``partial``.

    Args:
        problems: those whose prompts may come.
        executor: runs programs.
        partial: the share of the tests that pass, where not all do.
    """

    reads = "the program that prompt and completion make"

    def __init__(self, problems: Sequence[Problem], executor: Executor, partial: bool = False) -> None:
        self.problems = {problem.prompt: problem for problem in problems}
        self.executor, self.partial = executor, partial

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """The numbers.

        Raises:
            ValueError: a prompt of no problem (names the row).
        """
        jobs = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            problem = self.problems.get(prompt) if isinstance(prompt, str) else None
            if problem is None:
                raise ValueError(f"Prompt {row} is that of no problem of this benchmark: {str(prompt)[:80]!r}.")
            jobs.append((problem.program(cut_at(completion, problem.stop)), problem.job))
        outcomes = self.executor.run(jobs)
        return [
            sum(one.tests) / len(one.tests) if self.partial and not one.passed else float(one.passed)
            for one in outcomes
        ]


def code_reward(
    argument: str, *, allow_code_execution: bool = False, partial: bool = False, workers: int | None = None
) -> CodeReward:
    """The reward ``code-tests:BENCHMARK:FILE[:PROMPT]``.

    Args:
        argument: ``humaneval`` or ``mbpp``, a file of its problems, and for MBPP how it asks (``task`` unless given).
        allow_code_execution, workers: see :class:`Executor`.
        partial: see :class:`CodeReward`.

    Raises:
        ValueError: not of that form, or execution is not allowed.
    """
    benchmark, _, rest = argument.partition(":")
    path, _, prompt = rest.partition(":")
    if not path:
        raise ValueError(f"code-tests:{argument}: write code-tests:BENCHMARK:FILE, such as code-tests:mbpp:mbpp.jsonl.")
    executor = Executor(allow_code_execution=allow_code_execution, workers=workers)
    problems = load_problems(benchmark, path, prompt=prompt or "task", split="all")
    return CodeReward(problems, executor, partial)
