"""Programs that models write: HumanEval and MBPP, run in the sandbox, pass@k."""

from __future__ import annotations

from .execution import Executor
from .pass_at_k import pass_at_k
from .problems import Problem, load_problems
from .reward import CodeReward, code_reward
from .scoring import CodeSamplingSettings, Score, read_samples, score_samples

__all__ = [
    "CodeReward",
    "CodeSamplingSettings",
    "Executor",
    "Problem",
    "Score",
    "code_reward",
    "load_problems",
    "pass_at_k",
    "read_samples",
    "score_samples",
]
