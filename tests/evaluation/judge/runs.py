"""Asking from processes of their own, started quickly: they fork from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sparsepo.evaluation.judge import AnswerCache, BudgetError, Endpoint, Ledger, Manners, ask_all, request_key

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["openai", "sparsepo.evaluation.judge", "tests.evaluation.judge.runs"])
BODIES = [{"model": "m", "messages": [{"role": "user", "content": str(i)}], "max_tokens": 20} for i in range(12)]


def ask(url: str, folder: str, results: Any) -> None:
    """Ask twelve questions, three at once; the result is how many were answered and how many known."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without it
    cache, ledger = AnswerCache(f"{folder}/cache"), Ledger(f"{folder}/ledger")
    bodies = {request_key(body): body for body in BODIES}
    asked = ask_all(bodies, cache, ledger, Endpoint(url), Manners(parallel=3))
    results.put((asked.answered, asked.cached))


def claim(path: str, key: str, results: Any) -> None:
    """Claim a request and end."""
    results.put(AnswerCache(path).claim(key, 1000))


def reserve(path: str, most: int, results: Any) -> None:
    """Enter as many requests as a cap allows; the result is how many."""
    ledger = Ledger(path, max_requests=most)
    for count in range(most + 1):
        try:
            ledger.reserve(BODIES[0])
        except BudgetError:
            results.put(count)
            return


def start(function: Any, *arguments: Any) -> tuple[BaseProcess, Any]:
    """Run one of the functions above in a process; its result comes through the queue."""
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=function, args=(*map(str_if_path, arguments), results))
    process.start()
    return process, results


def str_if_path(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
