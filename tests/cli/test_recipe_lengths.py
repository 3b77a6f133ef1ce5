"""Lengths of recipes fit the positions of the models that they start from: the real architectures, at toy width."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.base import CliError
from sparsepo.cli.experiment import check_positions
from sparsepo.cli.experiment_commands import InProcess
from sparsepo.cli.models import fit_length, positions_of
from sparsepo.cli.recipe_files import read_recipe
from sparsepo.cli.sft import parser as sft_parser
from sparsepo.cli.train import parse
from sparsepo.experiments.pipeline.recipe import SFT
from sparsepo.experiments.pipeline.recipe import read_recipe as read_experiment
from tests.cli.conftest import Outcome, write_rows
from tests.support import WORDS, tiny_model, tiny_tokenizer

Call = Callable[..., Outcome]
FOLDER = Path(__file__).resolve().parents[2] / "recipes"
# The models that the paper's tasks start from: architecture and positions, as their config.json has them
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "imdb": ("gpt2", {"n_positions": 1024}),  # openai-community/gpt2-large
    "hh": ("gpt_neox", {"max_position_embeddings": 2048}),  # EleutherAI/pythia-1.4b
    "tldr": ("gptj", {"n_positions": 2048}),  # EleutherAI/gpt-j-6b
    "mbpp": ("gpt_bigcode", {"n_positions": 8192, "multi_query": True}),  # bigcode/starcoderbase-1b
}
TASKS = {"imdb": "sentiment", "hh": "dialogue", "tldr": "summarisation", "mbpp": "code"}
TRAINED = sorted(path.stem for task in STARTS for path in FOLDER.glob(f"{task}_*.yaml"))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for task, (architecture, changes) in STARTS.items():
        folders[task] = tmp_path_factory.mktemp(task)
        tiny_model(architecture, **changes).save_pretrained(folders[task])
        tiny_tokenizer().save_pretrained(folders[task])
    return folders


@pytest.mark.parametrize("name", TRAINED)
def test_recipes_of_training_fit(starts: dict[str, Path], name: str) -> None:
    folder = starts[name.partition("_")[0]]
    config = parse([f"--config={FOLDER / name}.yaml", f"--model_name_or_path={folder}"]).config
    lengths = (config.max_length, config.max_prompt_length)
    fit_length(config, positions_of(str(folder)), None)
    assert (config.max_length, config.max_prompt_length) == lengths  # what the recipe says is what is done
    assert lengths[1] < lengths[0]


@pytest.mark.parametrize("task", STARTS)
def test_recipes_of_sft_fit(starts: dict[str, Path], task: str) -> None:
    parser = sft_parser()
    namespace = parser.parse_namespace([], read_recipe(f"{FOLDER}/sft_{task}.yaml"))
    namespace.bf16 = False
    _, config, _, _ = parser.dataclasses_of(namespace)
    assert config.max_length <= positions_of(str(starts[task]))


@pytest.mark.parametrize(("task", "name"), TASKS.items())
def test_experiments_of_the_paper_fit(starts: dict[str, Path], task: str, name: str) -> None:
    recipe = read_experiment(name, "paper", [f"sft.model_name_or_path={starts[task]}"])
    check_positions(recipe)
    positions = positions_of(str(starts[task]))
    commands = InProcess()
    commands.check("sft", recipe.sft)
    for method in recipe.methods:
        if method != SFT:
            flags = recipe.flags_of(method, recipe.betas_of(method)[0] or 0.0)
            commands.check("train", flags)
            assert flags["max_prompt_length"] < flags["max_length"] <= positions
    assert recipe.sft["max_length"] <= positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.max_prompt_length=1024", r"train.max_prompt_length=1024 leaves no room for a response in the 1024"),
        ("evaluate.max_prompt_tokens=1000", r"max_prompt_tokens=1000 and evaluate.max_new_tokens=64 together exceed"),
    ],
)
def test_experiments_that_do_not_fit_are_refused(starts: dict[str, Path], change: str, message: str) -> None:
    recipe = read_experiment("sentiment", "paper", [f"sft.model_name_or_path={starts['imdb']}", change])
    with pytest.raises(CliError, match=message):
        check_positions(recipe)


@pytest.mark.parametrize("task", ["imdb", "mbpp"])
def test_a_step_at_full_length(sparsepo: Call, starts: dict[str, Path], tmp_path: Path, task: str) -> None:
    """SFT and training by the recipe, rows longer than it allows, sizes and steps changed alone: absolute positions."""
    text = " ".join(WORDS[number % len(WORDS)] for number in range(2300))
    pairs = [{"prompt": f"{WORDS[n]} {text}", "chosen": f" good {text}", "rejected": f" bad {text}"} for n in range(4)]
    data = write_rows(tmp_path / "pairs.jsonl", pairs)
    short = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--max_steps", 1, "--use_cpu",
             "--num_train_epochs", 1, "--save_strategy", "no")  # fmt: skip
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": text}] * 3)
    recipe = FOLDER / f"sft_{task}.yaml"
    result = sparsepo("sft", "--config", recipe, "--model_name_or_path", starts[task], "--dataset_name", texts,
                      "--output_dir", tmp_path / "sft", *short)  # fmt: skip
    assert result.status == 0, result.err
    assert "no more positions" not in result.out
    recipe = FOLDER / f"{task}_independent.yaml"
    result = sparsepo("train", "--config", recipe, "--model_name_or_path", tmp_path / "sft", "--dataset_name", data,
                      "--output_dir", tmp_path / "out", *short)  # fmt: skip
    assert result.status == 0, result.err
    assert "no more positions" not in result.out
    summary = json.loads((tmp_path / "out" / "train_summary.json").read_text(encoding="utf-8"))
    (found, *_) = [report["tokens"] for report in summary["data"]]
    assert found["prompt_longest"] == summary["settings"]["max_prompt_length"]
    assert summary["steps"] == 1


def test_sft_fits_rows_to_the_model(sparsepo: Call, model_folder: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": " ".join(WORDS * 10)}] * 3)
    result = sparsepo("sft", "--model_name_or_path", model_folder, "--dataset_name", texts, "--output_dir", tmp_path / "o",
                      "--max_steps", 1, "--use_cpu", "--save_strategy", "no", "--report_to", "none")  # fmt: skip
    assert result.status == 0, result.err
    assert "max_length 1024 → 128: the model has no more positions" in result.out
