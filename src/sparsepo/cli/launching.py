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


def launch(command: str, arguments: Sequence[str], config: str, processes: int | None = None) -> int:
    """Run ``sparsepo COMMAND ARGUMENTS`` under ``accelerate launch``.

    Args:
        command: the subcommand.
        arguments: its arguments as given.
        config: file or name of an accelerate configuration.
        processes: number of processes instead of the configuration's.

    Returns:
        Exit status: 0, or 1 if a process failed (it has said why).
    """
    import subprocess

    from accelerate.commands.launch import launch_command, launch_command_parser

    options = ["--config_file", accelerate_config_path(config)]
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
