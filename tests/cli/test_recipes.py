"""Recipes: each parses, and the paper's tasks have the published values exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.recipe_files import read_recipe
from sparsepo.cli.sft import parser as sft_parser
from sparsepo.cli.train import parse
from sparsepo.training.settings import resolve_settings

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
TASKS = ("imdb", "hh", "tldr", "mbpp")
METHODS = ("mapo", "common", "independent")
LORA = {"use_peft": True, "lora_r": 64, "lora_alpha": 16}

# The published table: task, method → β, learning rate, epochs, effective batch, and what else it gives
PUBLISHED: dict[tuple[str, str], tuple[float, float, int, int, dict[str, Any]]] = {
    ("imdb", "mapo"): (0.8, 1e-6, 3, 64, {}),
    ("imdb", "common"): (0.8, 1e-6, 3, 64, {}),
    ("imdb", "independent"): (0.8, 1e-6, 3, 64, {}),
    ("tldr", "mapo"): (0.8, 1e-4, 1, 256, LORA),
    ("tldr", "common"): (0.8, 1e-4, 1, 256, {**LORA, "mask_weight_decay": 0.01}),
    ("tldr", "independent"): (0.8, 1e-4, 1, 256, {**LORA, "mask_weight_decay": 0.01}),
    ("hh", "mapo"): (0.1, 1e-6, 3, 128, {}),
    ("hh", "common"): (0.1, 5e-7, 3, 128, {"mask_weight_decay": 0.01, "mask_l1_reward": 0.001, "mask_l1_kl": 0.001}),
    ("hh", "independent"): (0.1, 5e-7, 3, 128, {}),
    ("mbpp", "mapo"): (0.8, 5e-7, 3, 32, {}),
    ("mbpp", "common"): (0.8, 5e-7, 3, 32, {}),
    ("mbpp", "independent"): (0.8, 5e-7, 3, 32, {}),
}


@pytest.mark.parametrize(("task", "method"), PUBLISHED)
def test_published_settings(task: str, method: str) -> None:
    beta, rate, epochs, batch, others = PUBLISHED[task, method]
    settings = parse([f"--config={FOLDER}/{task}_{method}.yaml"])
    config = settings.config
    assert (config.beta, config.learning_rate, config.num_train_epochs) == (beta, rate, epochs)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == batch
    assert (config.lr_scheduler_type.value, config.warmup_steps) == ("cosine", 0.1)
    # published 2048 and 1024; GPT-2 has 1,024 positions
    assert (config.max_length, config.max_prompt_length) == ((1024, 512) if task == "imdb" else (2048, 1024))
    assert config.optim.value.startswith("adamw_torch")
    assert config.preset == "published"
    assert config.objective == ("mapo" if method == "mapo" else "sparsepo")
    assert config.mask_sharing == (None if method == "mapo" else method)
    for name, value in others.items():
        assert getattr(config if hasattr(config, name) else settings.model, name) == value
    unwanted = {"mask_l1_reward", "mask_l1_kl", "mask_weight_decay", "lora_r", "use_peft"} - set(others)
    assert not unwanted & settings.given
    resolved = resolve_settings(config)  # refuses settings that nothing reads
    assert resolved.objective.beta == beta
    assert resolved.objective.kl_anchor == 0
    if method != "mapo":
        assert resolved.mask_training is not None
        assert resolved.mask_training.learning_rate == rate  # as published: the policy's own
        assert resolved.mask_training.weight_decay == 0.01
        assert resolved.mask_arguments["init"] == "published"
        assert resolved.mask_arguments["sharing"] == method


def test_every_task_has_every_method_and_every_recipe_is_tested() -> None:
    assert set(PUBLISHED) == {(task, method) for task in TASKS for method in METHODS}
    names = {f"{task}_{method}" for task, method in PUBLISHED} | {f"sft_{task}" for task in TASKS}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == names | {"quickstart", "sft_small"}


@pytest.mark.parametrize("name", [*(f"sft_{task}" for task in TASKS), "sft_small"])
def test_sft_recipes_parse(name: str) -> None:
    parser = sft_parser()
    namespace = parser.parse_namespace([], read_recipe(f"{FOLDER}/{name}.yaml"))
    namespace.bf16 = False
    _, config, model, own = parser.dataclasses_of(namespace)
    if name == "sft_hh":
        assert (config.learning_rate, config.num_train_epochs) == (1e-5, 1)  # the only published SFT settings
    assert (model.model_name_or_path is None) == (own.init_from_config is not None)


def test_quick_start_has_the_library_s_own_defaults() -> None:
    settings = parse([f"--config={FOLDER}/quickstart.yaml", "--output_dir=out"])
    assert settings.config.preset is None
    assert resolve_settings(settings.config).mask_arguments["init"] == "ones"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_headers_say_what_a_person_needs(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for part in ("Command:", "Hardware:", "Expect:"):
        assert part in text
    kind = "sft" if path.stem.startswith("sft_") else "train"
    assert f"sparsepo {kind} --config recipes/{path.name}" in text


def test_headers_tell_of_the_two_batch_sizes_of_hh_and_of_fp16() -> None:
    for task, method in PUBLISHED:
        text = (FOLDER / f"{task}_{method}.yaml").read_text(encoding="utf-8")
        assert "the published runs used fp16" in text
        assert ("64" in text and "128" in text) or task != "hh"
