"""Limits of a program's run, and what keeps it in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

MiB = 2**20
LAYERS = ("namespaces", "landlock", "seccomp")


class ExecutionNotAllowedError(ValueError):
    """Programs of a model were to be run, and nobody has said that they may be."""


def check_consent(allow_code_execution: bool) -> None:
    """Refuse to run programs unless a person has said that they may be.

    Raises:
        ExecutionNotAllowedError: ``allow_code_execution`` is not True.
    """
    if allow_code_execution is not True:
        raise ExecutionNotAllowedError(
            "Programs that a model wrote run only with --allow-code-execution (allow_code_execution=True): docs/code.md "
            "says what contains them and what does not."
        )


class SandboxError(RuntimeError):
    """The sandbox itself failed; nothing is said about the program."""


@dataclass(frozen=True)
class Limits:
    """Limits of one run of a program with its tests; both processes have each of them.

    Args:
        wall_seconds: until both are killed.
        cpu_seconds: of computing, until the process is killed.
        memory_bytes: address space of a process.
        output_bytes: printed by both, then they are killed.
        file_bytes: of one file.
        scratch_bytes: of all files together.
        threads: of a process.
        open_files: of a process.
    """

    wall_seconds: float = 30.0
    cpu_seconds: int = 10
    memory_bytes: int = 1024 * MiB
    output_bytes: int = MiB
    file_bytes: int = 8 * MiB
    scratch_bytes: int = 32 * MiB
    threads: int = 32
    open_files: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value} must be above 0.")
        if self.open_files < 16:
            raise ValueError(
                f"open_files={self.open_files} must be at least 16: some are open before the program runs."
            )
        if self.memory_bytes < 64 * MiB:
            raise ValueError(f"memory_bytes={self.memory_bytes} must be at least {64 * MiB}: Python itself needs that.")

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Isolation:
    """What keeps programs in.

    Args:
        layers: in force: ``namespaces`` (own root folder, process table, network, users), ``landlock`` (file access),
            ``seccomp`` (system calls).
        reasons: why the others are not.
    """

    layers: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...] = ()

    @property
    def uncontained(self) -> list[str]:
        """What a program could do that nothing here prevents, in words; empty where all is contained."""
        spaces, landlock, seccomp = (layer in self.layers for layer in LAYERS)
        found = []
        if not (spaces or landlock):
            found.append("read and write every file that you can, the environment of your other processes included")
        if not (spaces or seccomp):
            found.append("use the network" + (" by UDP or local sockets" if landlock else ""))
        if not (spaces or seccomp):
            found.append("start processes, up to the limit, and signal your other processes")
        return found

    def describe(self) -> str:
        """One line: what is in force, and why other layers are not."""
        active = ", ".join(self.layers) or "resource limits only"
        missing = "; ".join(f"no {name}: {reason}" for name, reason in self.reasons)
        return f"{active}{f' ({missing})' if missing else ''}"
