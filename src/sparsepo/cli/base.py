"""What every subcommand shares: argument errors with a suggestion, and one-line errors. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

USAGE_ERROR = 2
RUN_ERROR = 1
INTERRUPTED = 130

# Names that people bring from other versions or libraries → what stands here instead, and a word on it
RENAMED = {
    "warmup_ratio": ("warmup_steps", "a value below 1 is a share of all steps"),
    "evaluation_strategy": ("eval_strategy", ""),
    "torch_dtype": ("dtype", ""),
    "no_cuda": ("use_cpu", ""),
    "ref_model": ("ref_model_name_or_path", ""),
    "reference_model": ("ref_model_name_or_path", ""),
    "model": ("model_name_or_path", ""),
    "dataset": ("dataset_name", ""),
    "train_dataset": ("dataset_name", ""),
    "train_file": ("dataset_name", "it takes files as well"),
    "reference_free": ("objective", "simpo has no reference"),
    "rpo_alpha": ("sft_weight", ""),
    "loss": ("loss_type", "the link; objective is the loss"),
    "batch_size": ("per_device_train_batch_size", ""),
    "lr": ("learning_rate", ""),
    "epochs": ("num_train_epochs", ""),
    "lora_rank": ("lora_r", ""),
}


class CliError(Exception):
    """A problem that a person can mend: printed as one line, exit status 1."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the known name nearest to a mistyped one, or an empty string."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def advise(name: str, known: Iterable[str]) -> str:
    """As :func:`suggest`, and knows the names of other libraries. ``name`` and ``known`` without leading dashes."""
    name, known = name.replace("-", "_"), set(known)
    instead, remark = RENAMED.get(name, ("", ""))
    if name not in known and instead in known:
        return f"; use {instead}{f' ({remark})' if remark else ''}"
    return suggest(name, known)


class CommandParser(argparse.ArgumentParser):
    """An argument parser without abbreviations, for which an unknown flag is an error with a suggestion."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    # Subparsers take all arguments behind their name, so that whatever is left over is theirs to explain.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, extras = super().parse_known_args(args, namespace)
        if extras:
            self.error(self.explain_unknown(extras))
        return namespace, extras

    def explain_unknown(self, extras: Sequence[str]) -> str:
        """One line about arguments that no flag takes."""
        flag = next((item for item in extras if item.startswith("-")), None)
        if flag is None:
            return f"unexpected argument {extras[0]!r}"
        name = flag.split("=", 1)[0]
        if len(name.lstrip("-")) == 1:
            return f"unknown flag {name}"
        known = {option.lstrip("-").replace("-", "_") for option in self.long_options()}
        advice = advise(name.lstrip("-"), known)
        for words in ("did you mean ", "use "):
            advice = advice.replace(words, f"{words}--")
        return f"unknown flag {name}{advice}"

    def long_options(self) -> list[str]:
        """All long flags, one spelling each."""
        found: dict[str, str] = {}
        for option in self._option_string_actions:
            if option.startswith("--"):
                found.setdefault(option.replace("-", "_"), option)
        return list(found.values())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{value!r} is not one of {', '.join(choices)}{suggest(str(value), choices)}"
            )

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line on what is wrong."""
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\nSee {self.prog} --help\n")


def take_option(arguments: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """Remove ``--name value`` or ``--name=value`` from arguments.

    Raises:
        CliError: no value, or given twice.
    """
    rest: list[str] = []
    values: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == name:
            value = next(items, None)
            if value is None or value.startswith("--"):
                raise CliError(f"{name} needs a value.")
            values.append(value)
        elif item.startswith(f"{name}="):
            values.append(item.split("=", 1)[1])
        else:
            rest.append(item)
    if len(values) > 1:
        raise CliError(f"{name} is given {len(values)} times; give it once.")
    return rest, values[0] if values else None
