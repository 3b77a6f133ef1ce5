"""``--accelerate_config``: the same command again, in the processes that accelerate starts."""

from __future__ import annotations

import importlib.resources
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import CliError, suggest

# Set for the processes that we start, which read the same arguments and must not start more
LAUNCHED = "SPARSEPO_LAUNCHED"


def is_launched() -> bool:
    """Whether this process is one of several already: started by :func:`launch`, ``accelerate launch`` or ``torchrun``."""
    return os.environ.get(LAUNCHED) == "1" or "LOCAL_RANK" in os.environ


def is_main_process() -> bool:
    """Whether this is the first process of a run."""
    return int(os.environ.get("RANK", "0")) == 0


def accelerate_config_path(name: str) -> str:
    """Path of an accelerate configuration, given a file or the name of one that comes with sparsepo or TRL.

    Raises:
        CliError: neither.
    """
    if Path(name).is_file():
        return name
    shipped: dict[str, str] = {}
    for package in ("trl.accelerate_configs", "sparsepo.cli.accelerate_configs"):  # ours hold where both have a name
        folder = importlib.resources.files(package)
        names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        shipped |= {file.removesuffix(".yaml"): str(folder.joinpath(file)) for file in names}
    shipped.pop("fsdp1", None)  # refused by the trainer
    if name not in shipped:
        known = sorted(shipped)
        raise CliError(
            f"accelerate_config: {name!r} is neither a file nor one of {', '.join(known)}{suggest(name, known)}"
        )
    return shipped[name]


def _content(path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CliError(f"accelerate_config {path} is not readable YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise CliError(f"accelerate_config {path} holds {type(content).__name__}, expected names and values.")
    return content or {}


def refuse_sharding_on_cpu(path: str, use_cpu: bool) -> None:
    """Accelerate runs a sharded configuration on a CPU as plain data parallelism, and one for several CPU processes in one,
    without a word: refuse them.

    Raises:
        CliError: the configuration shards and there is no accelerator to use, or it asks for CPU processes without MPI.
    """
    import torch

    kind = str(_content(path).get("distributed_type", "")).upper()
    if kind == "MULTI_CPU" and not _content(path).get("mpirun_config"):
        raise CliError(
            f"accelerate_config {path} asks for {kind}, for which accelerate starts one process unless it is given an MPI "
            "host file; use --use_cpu --accelerate_config ddp --num_processes N."
        )
    if kind in ("FSDP", "DEEPSPEED") and (use_cpu or not torch.accelerator.is_available()):
        reason = "--use_cpu was given" if use_cpu else "there is none here"
        raise CliError(f"accelerate_config {path} shards with {kind}, which needs an accelerator: {reason}.")


def _devices(use_cpu: bool) -> int:
    """Processes of a configuration that names no number: one for each accelerator."""
    import torch

    if use_cpu or not torch.accelerator.is_available():
        raise CliError("accelerate_config: how many processes? Give --num_processes.")
    return torch.accelerator.device_count()


def launch(
    command: str, arguments: Sequence[str], config: str, processes: int | None = None, use_cpu: bool = False
) -> int:
    """Run ``sparsepo COMMAND ARGUMENTS`` under ``accelerate launch``.

    Args:
        command: the subcommand.
        arguments: its arguments as given.
        config: file or name of an accelerate configuration.
        processes: number of processes instead of the configuration's.
        use_cpu: the run was told to stay on the CPU.

    Returns:
        Exit status: 0, 130 or 143 after a signal, or 1 if a process failed (it has said why).
    """
    import subprocess

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    path = accelerate_config_path(config)
    refuse_sharding_on_cpu(path, use_cpu)
    options = ["--config_file", path]
    if processes is None and "num_processes" not in _content(path):
        processes = _devices(use_cpu)
    if processes is not None:
        options += ["--num_processes", str(processes)]
    parsed = launch_command_parser().parse_args([*options, "-m", "sparsepo.cli.main", command, *arguments])
    os.environ[LAUNCHED] = "1"
    try:
        launch_command(parsed)
    except subprocess.CalledProcessError as error:
        return _status([error.returncode])
    except ChildFailedError as error:
        return _status([failure.exitcode for failure in error.failures.values()])
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        os.environ.pop(LAUNCHED, None)
    return 0


def _status(codes: Sequence[int]) -> int:
    """That of a signal, if a process ended by one or for one; else 1."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if any(code in (128 + number, -number) for code in codes):
            return 128 + number
    return 1
