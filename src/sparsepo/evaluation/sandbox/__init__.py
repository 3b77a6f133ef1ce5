"""Running programs that nobody has looked at: confined, limited, with a verdict that they cannot forge."""

from __future__ import annotations

from .running import Outcome, TestJob, containing_isolation, detect_isolation, run_tests
from .settings import ExecutionNotAllowedError, Isolation, Limits, SandboxError, check_consent

__all__ = [
    "ExecutionNotAllowedError",
    "Isolation",
    "Limits",
    "Outcome",
    "SandboxError",
    "TestJob",
    "check_consent",
    "containing_isolation",
    "detect_isolation",
    "run_tests",
]
