"""Recipes and flags: merging, types, and errors that say where."""

from __future__ import annotations

from argparse import Namespace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from sparsepo.cli.base import CliError, take_option
from sparsepo.cli.help_texts import SFT_HELP, TRAIN_HELP, HelpText
from sparsepo.cli.parsing import fitted
from sparsepo.cli.recipe_files import read_recipe
from sparsepo.cli.sft import parser as sft_parser
from sparsepo.cli.train import TrainSettings, parse
from sparsepo.cli.train import parser as train_parser


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def parsed(tmp_path: Path, text: str, *flags: str) -> TrainSettings:
    return parse(["--config", recipe(tmp_path, text), f"--output_dir={tmp_path}/out", *flags])


def test_defaults_then_recipe_then_flags(tmp_path: Path) -> None:
    text = "beta: 0.3\nlearning_rate: 1e-5\nmask_sharing: independent\n"
    settings = parsed(tmp_path, text, "--beta", "0.7")
    assert settings.config.beta == 0.7  # a flag wins
    assert settings.config.learning_rate == 1e-5  # YAML reads this as text
    assert settings.config.mask_sharing == "independent"
    assert settings.config.objective == "sparsepo"  # default
    assert settings.config.bf16 is False or settings.config.bf16 is True  # resolved by device, no error on a CPU
    assert settings.given == {"beta", "learning_rate", "mask_sharing", "output_dir"}


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_config_in_both_forms(tmp_path: Path, form: list[str]) -> None:
    path = recipe(tmp_path, "beta: 0.3\n")
    settings = parse([part.format(path) for part in form] + [f"--output_dir={tmp_path}/out"])
    assert settings.config.beta == 0.3


def test_values_of_all_kinds(tmp_path: Path) -> None:
    text = """
mask: activation
mask_activation_groups: [mlp, attn]
loss_type: hinge
lr_scheduler_type: cosine
warmup_steps: 0.1
max_steps: 7
model_init_kwargs: {attn_implementation: eager}
lora_target_modules: [q_proj, v_proj]
use_peft: true
eval_strategy: "no"
report_to: none
dataset_name: x.jsonl
max_prompt_length: null
"""
    s = parsed(tmp_path, text)
    assert s.config.mask_activation_groups == ["mlp", "attn"]
    assert s.config.loss_type == ["hinge"]
    assert (s.config.lr_scheduler_type.value, s.config.warmup_steps, s.config.max_steps) == ("cosine", 0.1, 7)
    assert s.config.model_init_kwargs == {"attn_implementation": "eager"}
    assert (s.model.lora_target_modules, s.model.use_peft) == (["q_proj", "v_proj"], True)
    assert s.config.eval_strategy.value == "no"
    assert s.script.dataset_name == "x.jsonl"


def test_a_flag_overrides_the_other_name_of_the_recipe(tmp_path: Path) -> None:
    settings = parsed(tmp_path, "eval_fraction: 0.1\n", "--eval_dataset", "held_out.jsonl")
    assert (settings.own.eval_dataset, settings.own.eval_fraction) == ("held_out.jsonl", None)
    with pytest.raises(ValueError, match="exclude each other"):
        parsed(tmp_path, "eval_fraction: 0.1\neval_dataset: held_out.jsonl\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beta: 0.1\nmask_sharng: common\n", "line 2: unknown setting 'mask_sharng'; did you mean mask_sharing?"),
        ("warmup_ratio: 0.1\n", "line 1: unknown setting 'warmup_ratio'; use warmup_steps"),
        ("learning-rate: 1\n", "unknown setting 'learning-rate'; did you mean learning_rate?"),
        ("beta: much\n", "line 1: beta: 'much' must be a number."),
        ("beta: true\n", "beta: True must be a number."),
        ("beta: [1, 2]\n", "beta: [1, 2] must be a number."),
        ("max_steps: 1.5\n", "max_steps: 1.5 must be a whole number."),
        ("use_peft: 'yes'\n", "use_peft: 'yes' must be true or false (without quotes)."),
        ("mask: 3.5\n", "mask: 3.5 must be text; put it in quotes."),
        ("mask: lerned\n", "mask: 'lerned' is not one of learned, activation, dense, random, data."),
        ("dtype: float23\n", "dtype: 'float23' is not one of auto, bfloat16"),
        ("eval_strategy: no\n", "eval_strategy: False is not one of no, steps, epoch (put it in quotes:"),
        ("eval_strategy: epochs\n", "'epochs' is not one of no, steps, epoch"),
        ("model_init_kwargs: 3\n", "model_init_kwargs: 3 must be a mapping of names to values"),
        ("learning_rate: null\n", "learning_rate: None must be a number."),
        ("beta: 0.1\nalpha: 1\nbeta: 0.2\n", "line 3: beta is given twice, first in line 1"),
        ("model_init_kwargs:\n  a: 1\n  a: 2\n", "line 3: a is given twice, first in line 2"),
        ("beta: 0.1\n  alpha: 1\n", "line 2: not valid YAML"),
        ("beta: [0.1\n", "not valid YAML"),
        ("- beta\n", "must hold settings, one `name: value` a line; it holds a list."),
        ("", "it holds nothing."),
        ("beta\n", "it holds a single value."),
        ("env: 3\n", "line 1: env must be a mapping"),
    ],
)
def test_wrong_recipes_name_file_line_and_mend(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CliError) as caught:
        parsed(tmp_path, text)
    assert said in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_values_that_only_the_config_can_judge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"beta=-1\.0 must be above 0"):
        parsed(tmp_path, "beta: -1\n")
    with pytest.raises(ValueError, match="leaves no room for a response"):
        parsed(tmp_path, "max_length: 8\nmax_prompt_length: 8\n")


def test_missing_recipe_names_its_neighbour(tmp_path: Path) -> None:
    recipe(tmp_path, "beta: 1\n")
    with pytest.raises(CliError, match=r"no such file\. Did you mean .*recipe\.yaml\?"):
        read_recipe(str(tmp_path / "recipes.yaml"))
    with pytest.raises(CliError, match="is a folder"):
        read_recipe(str(tmp_path))


def test_environment_of_a_recipe(tmp_path: Path) -> None:
    found = read_recipe(recipe(tmp_path, "env:\n  SOME_NAME: 3\nbeta: 1\n"))
    assert found.env == {"SOME_NAME": "3"}
    assert found.settings == {"beta": 1}


def test_take_option() -> None:
    assert take_option(["--a", "1", "--config=x", "b"], "--config") == (["--a", "1", "b"], "x")
    assert take_option(["--a"], "--config") == (["--a"], None)
    for arguments, said in ((["--config"], "needs a value"), (["--config", "--beta"], "needs a value"),
                            (["--config=a", "--config", "b"], "is given 2 times")):  # fmt: skip
        with pytest.raises(CliError, match=said):
            take_option(arguments, "--config")


class _Kind(str, Enum):
    ONE = "one"


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        ("1e-6", float, 1e-6),
        ("1e-6", float | str, 1e-6),
        (3, float, 3.0),
        (3.0, int, 3),
        ("none", str | list[str], ["none"]),
        (None, int | None, None),
        ("last", bool | str, "last"),
        ("one", _Kind | str, "one"),
        ({"a": 1}, dict | str | None, {"a": 1}),
        ('{"a": 1}', dict[str, Any] | str | None, {"a": 1}),
        ("a", Literal["a", "b"], "a"),
        ([1, "2"], list[float], [1.0, 2.0]),
    ],
)
def test_fitted(value: Any, hint: Any, result: Any) -> None:
    found = fitted(value, hint)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize("value", ["two", False, 1])
def test_enumerations_refuse_other_values(value: Any) -> None:
    with pytest.raises(ValueError, match="is not one of one"):
        fitted(value, _Kind | str)


@pytest.mark.parametrize(("text", "parser"), [(TRAIN_HELP, train_parser()), (SFT_HELP, sft_parser())])
def test_short_help_names_flags_that_exist(text: HelpText, parser: Any) -> None:
    import re

    known = set(parser.hints) | {"config"}
    for flags in text.groups.values():
        for flag, meaning in flags:
            for name in (flag, *re.findall(r"--\w+", meaning)):
                assert name.removeprefix("--") in known
    for name in re.findall(r"--\w+", text.usage + text.examples):
        assert name.removeprefix("--") in known


def test_all_flags_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from sparsepo.cli.main import main

    assert main(["train", "--help-all"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--mask_sharing", "--lora_r", "--eval_fraction", "--gradient_accumulation_steps"):
        assert flag in shown


def test_namespace_keeps_what_was_given() -> None:
    found = train_parser()
    namespace = found.parse_namespace(["--no_disable_dropout", "--beta=1"])
    assert isinstance(namespace, Namespace)
    assert found.given == {"disable_dropout", "beta"}
    assert namespace.disable_dropout is False
