"""The training commands as an experiment's stages call them: in the stage's own process, by a recipe that they keep."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import CliError


class InProcess:
    """Implements :class:`sparsepo.experiments.pipeline.jobs.Commands`."""

    def check(self, command: str, settings: Mapping[str, Any]) -> None:
        """Names, types and values of settings, as the command itself checks them.

        Raises:
            CliError, ValueError: names the setting.
        """
        from .recipe_files import Recipe

        module = importlib.import_module(f"sparsepo.cli.{command}")
        parser = module.parser()
        recipe = Recipe(f"{command} settings of the experiment", dict(settings), dict.fromkeys(settings, 0), {})
        try:
            namespace = parser.parse_namespace([], recipe)
        except CliError as error:
            raise CliError(str(error).replace(", line 0", "")) from error
        if namespace.bf16 is None:
            namespace.bf16 = False  # follows the device when it runs
        parser.dataclasses_of(namespace)

    def run(self, command: str, settings: Mapping[str, Any], recipe: Path) -> None:
        """Write the settings as a recipe, which repeats the run by itself, and run the command.

        Raises:
            CliError: the command said that it failed.
        """
        import yaml

        recipe.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
        status = importlib.import_module(f"sparsepo.cli.{command}").run(["--config", str(recipe)])
        if status:
            raise CliError(f"sparsepo {command} --config {recipe} ended with status {status}; see the stage's log.")

    def merge(self, adapter: Path, output: Path) -> None:
        """``sparsepo merge``."""
        from .merge import run

        run(Namespace(adapter=str(adapter), output=str(output), base_model=None, dtype="auto"))
