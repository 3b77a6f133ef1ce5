"""Recipes: YAML files of settings, read with line numbers so that every error says where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import CliError

LARGEST = 1 << 20  # characters
MOST_VALUES = 200_000


@dataclass(frozen=True)
class Recipe:
    """Settings from a YAML file.

    Args:
        path: where they stand.
        settings: top-level names and values, without ``env``.
        lines: line of each name, from 1.
        env: environment variables that the file sets.
    """

    path: str
    settings: dict[str, Any]
    lines: dict[str, int]
    env: dict[str, str]

    def where(self, name: str) -> str:
        """``"file, line N"`` of a setting."""
        line = self.lines.get(name)  # YAML may read a name as something else: 0x10, yes
        return self.path if line is None else f"{self.path}, line {line}"


def read_recipe(path: str) -> Recipe:
    """Read a recipe.

    Raises:
        CliError: no such file, wrong YAML, a name given twice, or something else than a mapping; names file and line.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise CliError(f"--config {path}: no such file.{_nearby(path)}") from error
    except IsADirectoryError as error:
        raise CliError(f"--config {path} is a folder; name a YAML file in it.") from error
    except UnicodeDecodeError as error:
        raise CliError(f"--config {path} is not UTF-8 text.") from error
    if len(text) > LARGEST:
        raise CliError(f"--config {path} has more than {LARGEST >> 10} Ki characters; no recipe does.")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise CliError(f"{path} must hold settings, one `name: value` a line; it holds {found}.")
        _refuse_swelling(node, path)
        _refuse_duplicates(node, path)
        lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
        settings = {str(name): value for name, value in loader.construct_document(node).items()}
    except yaml.YAMLError as error:
        raise CliError(f"{path}{_line_of(error)}: not valid YAML ({_problem_of(error)}).") from error
    except RecursionError:
        raise CliError(f"{path}: nested too deeply for a recipe.") from None
    except (ValueError, TypeError, OverflowError, AttributeError) as error:  # what Python or PyYAML cannot make
        raise CliError(f"{path}: a value cannot be read ({error}); put it in quotes.") from error
    finally:
        if loader is not None:
            loader.dispose()
    env = settings.pop("env", None) or {}
    if not isinstance(env, dict):
        raise CliError(f"{path}, line {lines.get('env', '?')}: env must be a mapping of variable names to values.")
    return Recipe(path, settings, lines, {str(name): str(value) for name, value in env.items()})


def _refuse_swelling(root: Any, path: str) -> None:
    """A few lines of anchors and aliases can stand for billions of values, or for themselves."""
    import yaml

    sizes: dict[int, int] = {}
    under_way = -1

    def size_of(node: Any) -> int:
        known = sizes.get(id(node))
        if known == under_way:
            raise CliError(f"{path}, line {node.start_mark.line + 1}: an alias stands for what it is a part of.")
        if known is not None:
            return known
        sizes[id(node)] = under_way
        inner: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        sizes[id(node)] = 1 + sum(map(size_of, inner))
        return sizes[id(node)]

    if size_of(root) > MOST_VALUES:
        raise CliError(f"{path} stands for more than {MOST_VALUES:,} values through its aliases; write them out.")


def _refuse_duplicates(node: Any, path: str) -> None:
    """YAML readers silently keep the last of two equal names."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise CliError(f"{path}, line {line}: {name} is given twice, first in line {seen[name]}; keep one.")
            seen[name] = line
            _refuse_duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, path)


def _line_of(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _problem_of(error: Any) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or " ".join(str(error).split())


def _nearby(path: str) -> str:
    """Names of recipes that stand beside a mistyped one."""
    import difflib

    folder = Path(path).parent
    names = [file.name for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, names, n=1, cutoff=0.5)
    return f" Did you mean {folder / near[0]}?" if near else ""
