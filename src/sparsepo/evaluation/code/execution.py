"""Many programs in sandboxes beside each other, each result kept as soon as it is there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..sandbox import Isolation, Limits, Outcome, TestJob, check_consent, containing_isolation, run_tests

# Progress: programs done, programs in all
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Executor:
    """How programs are run.

    Args:
        allow_code_execution: must be True.
        limits: of each.
        isolation: the layers; None: all of this system, which must contain everything.
        workers: sandboxes at a time; None: one for each processor.

    Raises:
        ExecutionNotAllowedError: ``allow_code_execution`` is not True.
        SandboxError: this system cannot contain programs.
    """

    allow_code_execution: bool = False
    limits: Limits = field(default_factory=Limits)
    isolation: Isolation | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        check_consent(self.allow_code_execution)
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1.")
        if self.isolation is None:
            object.__setattr__(self, "isolation", containing_isolation())

    def run(
        self, jobs: Sequence[tuple[str, TestJob]], keep: Path | None = None, progress: Progress | None = None
    ) -> list[Outcome]:
        """Outcomes of (program, tests), in order. A program that comes twice with the same tests runs once.

        Args:
            jobs: programs and their tests.
            keep: file of results: what it holds is not run again, and each new one is added at once.
            progress: called after each.
        """
        keys = [self._key(program, job) for program, job in jobs]
        done = _kept(keep)
        waiting = {key: jobs[place] for place, key in reversed(list(enumerate(keys))) if key not in done}
        waiting = {key: waiting[key] for key in dict.fromkeys(keys) if key in waiting}
        counts = Counter(keys)
        total = len(jobs) - sum(counts[key] for key in waiting)
        for key, outcome in self._run_all(waiting):
            done[key] = outcome
            if keep is not None:
                _add(keep, key, outcome)
            if progress is not None:
                total += counts[key]
                progress(total, len(jobs))
        return [done[key] for key in keys]

    def _run_all(self, waiting: dict[str, tuple[str, TestJob]]) -> Iterable[tuple[str, Outcome]]:
        left = iter(waiting.items())
        with ThreadPoolExecutor(self.workers or os.cpu_count() or 1) as pool:
            running: dict[Future[Outcome], str] = {}
            try:
                while True:
                    while len(running) < 2 * (self.workers or os.cpu_count() or 1) and (one := next(left, None)):
                        key, (program, job) = one
                        running[pool.submit(self._one, program, job)] = key
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            finally:  # interrupted: what has not begun does not begin
                for future in running:
                    future.cancel()

    def _one(self, program: str, job: TestJob) -> Outcome:
        allowed = self.allow_code_execution
        return run_tests(program, job, allow_code_execution=allowed, limits=self.limits, isolation=self.isolation)

    def _key(self, program: str, job: TestJob) -> str:
        """What a result depends on. The layers are left out: they decide what a program can do, not what it should."""
        content = json.dumps([program, asdict(job), self.limits.to_json()], sort_keys=True)
        return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _kept(path: Path | None) -> dict[str, Outcome]:
    if path is None or not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may have been cut off
            row = json.loads(line)
            key = row.pop("key")
            found[key] = Outcome(**{**row, "tests": tuple(row["tests"])})
    return found


def _add(path: Path, key: str, outcome: Outcome) -> None:
    line = json.dumps({"key": key, **asdict(outcome)}) + "\n"
    with open(path, "a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that was cut off: end it, so that it is one bad line and no more
                file.truncate(_last_line_end(file))
        file.seek(0, os.SEEK_END)
        file.write(line.encode())


def _last_line_end(file: Any) -> int:
    file.seek(0)
    return int(file.read().rfind(b"\n")) + 1
