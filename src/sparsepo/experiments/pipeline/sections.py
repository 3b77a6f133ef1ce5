"""What the sections of an experiment's recipe may hold: names, types, defaults and bounds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .reward_kinds import REWARD_KINDS, REWARD_SOURCES

SFT_TEXTS = ("all", "chosen", "none")
STRATEGIES = ("best_worst", "all", "threshold")
YARDSTICKS = ("words", "changes", "playground")


@dataclass(frozen=True)
class Setting:
    """One setting of a section.

    Args:
        kind: ``int``, ``float``, ``str`` or ``bool``.
        default: where it is not given.
        optional: whether it may be null.
        least, most: bounds, both allowed.
        above: bound that is not allowed.
        choices: the values that it may have.
    """

    kind: type
    default: Any = None
    optional: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] | None = None

    def checked(self, value: Any, where: str) -> Any:
        """The value in its type. Raises ``ValueError`` naming what is allowed."""
        if value is None and (self.optional or self.default is None):
            return None
        if self.kind is float and isinstance(value, str):
            value = _as_number(value)  # YAML reads 1e-3 without a point as text
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError(f"{where}={value!r} must be {_KINDS[self.kind]}.")
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"{where}={value!r} is not one of {', '.join(self.choices)}.")
        number: Any = value  # bounds are given for numbers only
        for is_wrong, words in (
            (self.least is not None and number < self.least, f"at least {self.least}"),
            (self.most is not None and number > self.most, f"at most {self.most}"),
            (self.above is not None and number <= self.above, f"above {self.above}"),
        ):
            if is_wrong:
                raise ValueError(f"{where}={value!r} must be {words}.")
        return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
Section = Mapping[str, Setting]

_LIMIT = Setting(int, optional=True, least=1)
_SEED = Setting(int, 0, least=0)
_SHARE = Setting(float, 0.1, above=0.0, most=0.9)
_ROWS: Section = {
    "train_split": Setting(str, optional=True),
    "held_out_split": Setting(str, optional=True),  # unset: eval_fraction of the prompts
    "data_dir": Setting(str, optional=True),  # inside a hub data set
    "eval_fraction": _SHARE,
    "seed": _SEED,
    "train_prompts": _LIMIT,
    "held_out_prompts": _LIMIT,
    "sft_texts": Setting(str, "chosen", choices=SFT_TEXTS),
}
_CODE: Section = {
    "train_split": Setting(str, optional=True),
    "held_out_split": Setting(str, optional=True),
    "eval_fraction": _SHARE,
    "seed": _SEED,
    "train_prompts": _LIMIT,
    "held_out_prompts": _LIMIT,
    "sft_texts": Setting(str, "chosen", choices=("chosen", "none")),
}
_WORLD: Section = {
    "texts": Setting(int, 8000, least=1),
    "sft_epochs": Setting(float, 2.0, above=0.0),
    "sft_learning_rate": Setting(float, 3e-3, above=0.0),
    "sft_batch_size": Setting(int, 32, least=1),
    "prompts": Setting(int, 2000, least=1),
    "held_out_prompts": Setting(int, 256, least=1),
    "samples": Setting(int, 4, least=2),
    "architecture": Setting(str, "gpt2", choices=("gpt2", "llama")),
}
PREPARE: dict[str, Section] = {
    "sentiment": _ROWS,
    "dialogue": _ROWS,
    "summarisation": _ROWS,
    "code": _CODE,
    "playground": _WORLD,
}

_FROM_ROWS: Section = {
    "strategy": Setting(str, "best_worst", choices=STRATEGIES),
    "margin": Setting(float, 0.0, least=0.0),
    "cap": _LIMIT,
    "seed": _SEED,
    "train_pairs": _LIMIT,
    "held_out_pairs": _LIMIT,
}
_RUNNING: Section = {  # of programs
    "timeout": Setting(float, 3.0, above=0.0),  # CPU seconds of a program's tests, rounded up
    "workers": Setting(int, 1, least=1),  # sandboxes at a time, in each process of --jobs; changes no result
}
_SAMPLES: Section = {
    "samples": Setting(int, 8, least=2),
    "temperature": Setting(float, 1.0, least=0.0),
    "max_new_tokens": Setting(int, 256, least=1),
}
_FROM_PROGRAMS: Section = {
    "source": Setting(str, "mutants", choices=("mutants", "sampled")),
    "per_problem": Setting(int, 4, least=1),
    "check": Setting(bool, True),  # run the tests: the solution must pass, its mutant fail
    **_RUNNING,
    "seed": _SEED,
    "train_pairs": _LIMIT,
    "held_out_pairs": _LIMIT,
    **_SAMPLES,
}
PAIRS: dict[str, Section] = {
    "sentiment": _FROM_ROWS,
    "dialogue": _FROM_ROWS,
    "summarisation": _FROM_ROWS,
    "code": _FROM_PROGRAMS,
    "playground": {},
}

REWARD: Section = {
    "kind": Setting(str, "playground", choices=tuple(REWARD_KINDS)),
    "model": Setting(str, optional=True),  # of classifier and regression
    "label": Setting(str, optional=True),  # of classifier
    "trained_on": Setting(str, optional=True, choices=REWARD_SOURCES),  # of trained
    "epochs": Setting(float, 1.0, above=0.0),
    "learning_rate": Setting(float, 1e-3, above=0.0),
    "max_length": Setting(int, 128, least=2),
    "limit": _LIMIT,
    "seed": _SEED,
}
EVALUATE: Section = {
    "prompts": Setting(int, 64, least=1),
    "samples": Setting(int, 1, least=1),
    "max_new_tokens": Setting(int, 48, least=1),
    "max_prompt_tokens": _LIMIT,
    "temperature": Setting(float, 1.0, least=0.0),
    "top_p": Setting(float, 1.0, above=0.0, most=1.0),
    "batch_size": Setting(int, 64, least=1),
    "yardstick": Setting(str, optional=True, choices=YARDSTICKS),
    **_RUNNING,
}


def check_section(section: Section, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A section's values with their types checked and the defaults filled in.

    Raises:
        ValueError: an unknown name or a wrong value; says what is known.
    """
    for name in values:
        if name not in section:
            near = difflib.get_close_matches(str(name), list(section), n=1, cutoff=0.6)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{where}: unknown name {name!r}{hint}; known are {', '.join(section) or 'none'}.")
    return {
        name: setting.checked(values.get(name, setting.default), f"{where}.{name}") for name, setting in section.items()
    }


def _as_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
