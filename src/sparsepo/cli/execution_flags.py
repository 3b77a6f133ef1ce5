"""Flags of the sandbox, for every command that runs programs."""

from __future__ import annotations

import argparse
from typing import Any

from .reward_flags import add_execution_consent


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """Consent, limits and workers."""
    group = parser.add_argument_group("how programs are run")
    add_execution_consent(group)
    group.add_argument(
        "--allow-weak-sandbox",
        "--allow_weak_sandbox",
        action="store_true",
        help="also on a system that cannot contain them: it is said what they could do",
    )
    group.add_argument(
        "--timeout", type=float, default=30.0, help="seconds of a program's tests (default: %(default)s)"
    )
    group.add_argument("--cpu_seconds", type=int, default=10, help="of computing (default: %(default)s)")
    group.add_argument("--memory", type=int, default=1024, metavar="MIB", help="MiB a process (default: %(default)s)")
    group.add_argument("--workers", type=int, help="sandboxes at a time (default: one a processor)")


def executor_of(args: argparse.Namespace, console: Any) -> Any:
    """The executor that the flags describe; what contains programs is said.

    Raises:
        ValueError: no consent, a limit out of range.
        SandboxError: the system cannot contain programs, and the flag that accepts that is not given.
    """
    from sparsepo.evaluation.code import Executor
    from sparsepo.evaluation.sandbox import Limits, check_consent, containing_isolation, detect_isolation

    from .tables import say

    check_consent(args.allow_code_execution)
    limits = Limits(wall_seconds=args.timeout, cpu_seconds=args.cpu_seconds, memory_bytes=args.memory * 2**20)
    isolation = detect_isolation() if args.allow_weak_sandbox else containing_isolation()
    say(console, f"sandbox: {isolation.describe()}")
    for what in isolation.uncontained:
        say(console, f"NOT CONTAINED here: a program can {what}")
    return Executor(args.allow_code_execution, limits, isolation, args.workers)
