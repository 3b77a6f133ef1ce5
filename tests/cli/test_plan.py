"""`sparsepo plan` from a folder, by hand and from a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]
SMALL = ("--params", "1e7", "--layers", "2", "--hidden", "256", "--vocab", "8000", "--max_length", "64")


def planned(sparsepo: Call, *arguments: Any) -> dict[str, Any]:
    result = sparsepo("plan", *arguments, "--json")
    found: dict[str, Any] = json.loads(result.out)
    assert result.status == (0 if found["memory"]["fits"] else 1), result.err
    return found


def test_a_plan_names_every_part(sparsepo: Call) -> None:
    result = sparsepo("plan", *SMALL, "--gpu", "H100", "--pairs", "1000")
    assert result.status == 0, result.err
    for text in (
        "10,0",
        "weights of the policy",
        "optimiser states",
        "together",
        "fits",
        "1,000 steps",
        "Reference cache",
    ):
        assert text in result.out


def test_a_folder_and_by_hand(sparsepo: Call, model_folder: Path) -> None:
    found = planned(sparsepo, model_folder, "--max_length", "32", "--objective", "dpo", "--lora", "--gpu", "RTX4090")
    assert found["settings"]["mask"] == "none"
    assert found["settings"]["lora"]
    assert 0 < found["memory"]["trained_parameters"] < found["model"]["parameters"]
    assert found["memory"]["total"] == pytest.approx(sum(found["memory"]["parts"].values()))
    by_hand = planned(sparsepo, *SMALL, "--gpu_memory", "24", "--gpu_flops", "100")
    assert by_hand["model"]["parameters"] == pytest.approx(1e7, rel=0.01)
    assert by_hand["device"]["memory"] == 24 * 2**30


def test_a_recipe_is_read_and_flags_override_it(sparsepo: Call, model_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {model_folder}\ndataset_name: x.jsonl\noutput_dir: out\nobjective: tdpo2\nuse_peft: true\n"
        "lora_r: 4\nper_device_train_batch_size: 3\ngradient_accumulation_steps: 5\nmax_length: 48\nnum_train_epochs: 2\n"
        "dtype: bfloat16\nactivation_checkpointing: false\nprecompute_ref: true\n"
    )
    found = planned(sparsepo, "--config", recipe, "--batch_size", "2", "--pairs", "100")["settings"]
    wanted = {"objective": "tdpo2", "lora": True, "lora_r": 4, "batch_size": 2, "accumulation": 5, "max_length": 48,
              "epochs": 2.0, "precision": "bf16", "checkpointing": False, "precompute_ref": True, "mask": "none",
              "pairs": 100, "optimizer": "adamw"}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    recipe.write_text(
        f"model_name_or_path: {model_folder}\ndataset_name: x.jsonl\noutput_dir: out\nmax_length: 48\n"
        "accelerate_config: ddp\nnum_processes: 2\n"
    )
    defaults = planned(sparsepo, "--config", recipe)["settings"]
    assert (defaults["precision"], defaults["mask"], defaults["checkpointing"]) == ("mixed", "learned", True)
    assert (defaults["sharding"], defaults["devices"]) == ("ddp", 2)


def test_what_does_not_fit_ends_with_status_1_and_says_what_to_change(sparsepo: Call) -> None:
    arguments = (*SMALL, "--gpu", "H100", "--gpu_memory", "1.2", "--max_length", "256", "--batch_size", "32")
    result = sparsepo("plan", *arguments)
    assert result.status == 1
    for text in ("DOES NOT FIT", "What to change", "one at a time", "Enough: --per_device_train_batch_size 1"):
        assert text in result.out
    found = planned(sparsepo, *arguments)
    assert not found["memory"]["fits"]
    assert found["together"][0]["flags"].startswith("--per_device_train_batch_size 1")
    assert found["together"][-1]["memory"] < 0.92 * found["device"]["memory"] < found["memory"]["total"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "No model: give a hub id"),
        (("nowhere/model",), "'nowhere/model': no config"),
        (("some/model", "--params", "1e9"), "not both"),
        (("--params", "1e9", "--layers", "2"), "needs --hidden, --vocab as well"),
        ((*SMALL, "--gpu", "H1000"), "did you mean H100"),
        ((*SMALL, "--gpu_memory", "24"), "Give --gpu_memory and --gpu_flops together"),
        ((*SMALL, "--gpu_memory", "-1", "--gpu_flops", "2"), "--gpu_memory -1 must be above 0"),
        ((*SMALL, "--objective", "dpo", "--mask", "learned"), "objective=dpo reads no mask"),
        ((*SMALL, "--prompt_tokens", "60", "--response_tokens", "60"), "more than max_length=64"),
        ((*SMALL, "--max_length", "999999"), "positions"),
        ((*SMALL, "--batch_size", "0"), "batch_size=0 must be a whole number of at least 1"),
        (("--config", "nothing.yaml"), "no such file"),
    ],
)  # fmt: skip
def test_wrong_questions_are_answered_in_one_line(sparsepo: Call, arguments: tuple[str, ...], said: str) -> None:
    result = sparsepo("plan", *arguments)
    assert result.status == 1
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("load_in_8bit: true", "weights of 8 bits"),
        ("optim: lion_8bit", "optim=lion_8bit"),
        ("objektive: dpo", "unknown setting 'objektive'"),
    ],
)
def test_what_a_plan_cannot_follow_is_refused(sparsepo: Call, tmp_path: Path, line: str, said: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: x\ndataset_name: y.jsonl\noutput_dir: out\n{line}\n")
    result = sparsepo("plan", "--config", recipe)
    assert result.status == 1
    assert said in result.err
