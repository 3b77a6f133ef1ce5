"""``--accelerate_config``: the same command again, in the processes that accelerate starts."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path

from .base import CliError, suggest

# Set for the processes that we start, which read the same arguments and must not start more
LAUNCHED = "SPARSEPO_LAUNCHED"


def is_launched() -> bool:
    """Whether this process was started by :func:`launch`."""
    return os.environ.get(LAUNCHED) == "1"


def is_main_process() -> bool:
    """Whether this is the first process of a run."""
    return int(os.environ.get("RANK", "0")) == 0


def accelerate_config_path(name: str) -> str:
    """Path of an accelerate configuration, given a file or the name of one that TRL ships.

    Raises:
        CliError: neither.
    """
    if Path(name).is_file():
        return name
    folder = importlib.resources.files("trl.accelerate_configs")
    shipped = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in shipped:
        raise CliError(
            f"accelerate_config: {name!r} is neither a file nor one of {', '.join(shipped)}{suggest(name, shipped)}"
        )
    return str(folder.joinpath(f"{name}.yaml"))


def refuse_sharding_on_cpu(path: str, use_cpu: bool) -> None:
    """Accelerate runs a sharded configuration on a CPU as plain data parallelism, without a word: refuse it.

    Raises:
        CliError: the configuration shards and there is no accelerator to use.
    """
    import torch
    import yaml

    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    kind = str(content.get("distributed_type", "")).upper() if isinstance(content, dict) else ""
    if kind in ("FSDP", "DEEPSPEED") and (use_cpu or not torch.accelerator.is_available()):
        reason = "--use_cpu was given" if use_cpu else "there is none here"
        raise CliError(f"accelerate_config {path} shards with {kind}, which needs an accelerator: {reason}.")


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
        Exit status: 0, or 1 if a process failed (it has said why).
    """
    import subprocess

    from accelerate.commands.launch import launch_command, launch_command_parser

    path = accelerate_config_path(config)
    refuse_sharding_on_cpu(path, use_cpu)
    options = ["--config_file", path]
    if processes is not None:
        options += ["--num_processes", str(processes)]
    parsed = launch_command_parser().parse_args([*options, "-m", "sparsepo.cli.main", command, *arguments])
    os.environ[LAUNCHED] = "1"
    try:
        launch_command(parsed)
    except subprocess.CalledProcessError as error:
        return 130 if error.returncode in (130, -2) else 1
    finally:
        os.environ.pop(LAUNCHED, None)
    return 0
