"""Reasoning benchmarks: tasks run by lm-eval, scores normalised as the Open LLM Leaderboard (version 2) does."""

from __future__ import annotations

from .benchmarks import BENCHMARKS, Benchmark, Part
from .estimates import Estimate
from .normalising import average, normalised, raw
from .results import TaskResult

__all__ = ["BENCHMARKS", "Benchmark", "Estimate", "Part", "TaskResult", "average", "normalised", "raw"]
