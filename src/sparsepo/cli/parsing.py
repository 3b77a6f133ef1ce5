"""Flags and recipes → dataclasses. Like TRL's parser, but nothing unknown passes and YAML values are checked by type."""

from __future__ import annotations

import dataclasses
import json
import warnings
from argparse import Namespace
from collections.abc import Sequence
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from .base import CliError, CommandParser, advise
from .recipe_files import Recipe

# Settings of which one run has one
_EXCLUSIVE = (
    {"eval_dataset", "eval_fraction"},
    {"model_name_or_path", "init_from_config"},
    {"dataset_name", "text_files"},
)


class SettingsParser(CommandParser, TrlParser):
    """A parser of dataclass settings: defaults < recipe < flags.

    Args:
        dataclass_types: the dataclasses whose fields become flags and recipe keys.
        prog: name in messages.
    """

    def __init__(self, dataclass_types: Sequence[type], prog: str) -> None:
        super().__init__(dataclass_types=dataclass_types, prog=prog)
        self.hints: dict[str, Any] = {}
        self.choices: dict[str, Sequence[Any]] = {}
        for dataclass_type in dataclass_types:
            hints = get_type_hints(dataclass_type)
            for field in dataclasses.fields(dataclass_type):
                if field.init:
                    self.hints[field.name] = hints[field.name]
                    if "choices" in field.metadata:
                        self.choices[field.name] = field.metadata["choices"]
        self.given: set[str] = set()

    def parse_namespace(self, arguments: Sequence[str], recipe: Recipe | None = None) -> Namespace:
        """Merge a recipe and flags; which names either of them gave is kept in ``given``.

        Raises:
            CliError: a name or value of the recipe is wrong; names file and line.
            SystemExit: a flag is wrong (status 2).
        """
        flags = self._flags_in(arguments)
        settings = self.checked(recipe) if recipe is not None else {}
        for names in _EXCLUSIVE:
            if flags & names:  # a flag also overrides what the recipe says by the other name
                settings = {name: value for name, value in settings.items() if name not in names - flags}
        self.set_defaults(**settings)
        namespace = self.parse_args(list(arguments))
        self.given = set(settings) | flags
        return namespace

    def dataclasses_of(self, namespace: Namespace) -> tuple[Any, ...]:
        """One instance per dataclass. Their own checks raise ``ValueError``."""
        values = vars(namespace)
        # TRL sets the old name itself
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
        return tuple(
            kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.init})
            for kind in self.dataclass_types
        )

    def checked(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's settings with values of the right types."""
        values = {}
        for name, value in recipe.settings.items():
            if name not in self.hints:
                raise CliError(f"{recipe.where(name)}: unknown setting {name!r}{advise(name, self.hints)}")
            try:
                values[name] = fitted(value, self.hints[name])
            except ValueError as error:
                raise CliError(f"{recipe.where(name)}: {name}: {value!r:.200} {error}.") from None
            if name in self.choices and values[name] is not None and values[name] not in self.choices[name]:
                allowed = ", ".join(map(str, self.choices[name]))
                raise CliError(f"{recipe.where(name)}: {name}: {value!r} is not one of {allowed}.")
        return values

    def _flags_in(self, arguments: Sequence[str]) -> set[str]:
        named = (self._option_string_actions.get(item.split("=", 1)[0]) for item in arguments)
        return {action.dest for action in named if action is not None}


def fitted(value: Any, hint: Any) -> Any:
    """A YAML value as a type hint wants it.

    Numbers written as text (YAML reads ``1e-6`` without a point as text) become numbers; a single value for a list
    becomes a list of one.

    Raises:
        ValueError: it does not fit; the message says what is wanted, without the value.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _fitted_to_any(value, get_args(hint))
    if hint is Any:
        return value
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"is not one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is list or hint is list:
        element = (get_args(hint) or (Any,))[0]
        return [fitted(item, element) for item in (value if isinstance(value, list) else [value])]
    if origin is dict or hint is dict:
        return _mapping(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        allowed = [member.value for member in hint]
        if value not in allowed:
            hint_at_no = " (put it in quotes: YAML reads a bare no as false)" if value is False else ""
            raise ValueError(f"is not one of {', '.join(map(str, allowed))}{hint_at_no}")
        return value
    if dataclasses.is_dataclass(hint):
        return _mapping(value)
    return _plain(value, hint)


def _fitted_to_any(value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    problems = []
    # text last, so that "1e-6" becomes a number where a number is possible; never where an enumeration says which texts
    is_enumerated = any(isinstance(hint, type) and issubclass(hint, Enum) for hint in hints)
    wanted = [hint for hint in hints if hint is not type(None) and not (is_enumerated and hint is str)]
    for hint in sorted(wanted, key=lambda h: h is str):
        try:
            return fitted(value, hint)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(problems)))


def _mapping(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("must be a mapping of names to values")
    return value


def _plain(value: Any, hint: Any) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false (without quotes)")
        return value
    if hint in (int, float):
        return _number(value, hint)
    if hint is str and not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")
    return value


def _number(value: Any, kind: type) -> Any:
    wanted = "must be a whole number" if kind is int else "must be a number"
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(wanted) from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(wanted)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(wanted)
    try:
        return kind(value)
    except OverflowError:  # beyond what a float holds
        raise ValueError(f"{wanted} below 1.8e308") from None
