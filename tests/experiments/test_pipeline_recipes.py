"""Recipes of experiments: all of them can be planned, the paper's are the published ones, and what is wrong is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsepo.cli.experiment import TASKS as CLI_TASKS
from sparsepo.experiments.pipeline.needs import needs_of
from sparsepo.experiments.pipeline.planning import plan_of, resolve_sources
from sparsepo.experiments.pipeline.recipe import METHODS, ROLES, SFT, TASKS, available, read_recipe
from sparsepo.objectives import OBJECTIVES

# what the published table and scripts say; tests/cli/test_recipes.py holds recipes/ to them
PUBLISHED = (
    "preset", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lr_scheduler_type", "warmup_steps", "max_length", "max_prompt_length", "mask_sharing", "mask_weight_decay",
    "mask_l1_reward", "mask_l1_kl", "use_peft", "lora_r", "lora_alpha",
)  # fmt: skip
TRAINED = [method for method in METHODS if method != SFT]


def test_the_command_names_the_tasks() -> None:
    assert CLI_TASKS == TASKS
    assert {task for task, _ in available()} == set(TASKS)
    assert {(task, size) for task in TASKS for size in ("smoke", "small")} <= set(available())
    assert {(task, "paper") for task in TASKS if task != "playground"} <= set(available())


@pytest.mark.parametrize(("task", "size"), available())
def test_every_recipe_makes_a_plan(task: str, size: str) -> None:
    recipe = read_recipe(task, size)
    plan = plan_of(recipe, recipe.data)
    runs = plan.runs()
    per_seed = sum(len(recipe.betas_of(method)) for method in recipe.methods)
    assert len(runs) == per_seed * len(recipe.seeds)
    assert [run.row["method"] for run in runs].count(SFT) == len(recipe.seeds)
    for run in runs:
        assert ("train" in run.needs) == (run.row["method"] != SFT)
        assert "pairs" in run.needs
    needs = needs_of(recipe, plan, recipe.data)
    assert sum(needs.stages.values()) == len(plan.stages)
    assert {METHODS[method].get("objective") for method in TRAINED} == set(OBJECTIVES)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "playground"])
def test_the_papers_settings(task: str) -> None:
    """What the recipes of `sparsepo train` hold for the same task and method, β being swept around it."""
    short = {"sentiment": "imdb", "dialogue": "hh", "summarisation": "tldr", "code": "mbpp"}[task]
    recipe = read_recipe(task, "paper")
    folder = Path(__file__).resolve().parents[2] / "recipes"
    assert recipe.methods == list(METHODS)
    for method, name in (("MaPO", "mapo"), ("SparsePO common", "common"), ("SparsePO independent", "independent")):
        published = yaml.safe_load((folder / f"{short}_{name}.yaml").read_text(encoding="utf-8"))
        assert published["beta"] in recipe.betas_of(method)
        own = recipe.flags_of(method, published["beta"])
        for setting in PUBLISHED:
            assert own.get(setting) == published.get(setting), (method, setting)
    start = yaml.safe_load((folder / f"sft_{short}.yaml").read_text(encoding="utf-8"))
    for setting in ("model_name_or_path", "learning_rate", "num_train_epochs", "lora_r", "lora_alpha"):
        assert recipe.sft.get(setting) == start.get(setting)


def test_changes_are_yaml_and_reach_into_sections() -> None:
    changed = read_recipe(
        "sentiment",
        "small",
        [
            "betas=[0.2]",
            "train.learning_rate=1e-5",
            "seeds=[7]",
            "methods=[MaPO]",
            "method_settings.MaPO.kl_anchor=0.1",
        ],
    )
    assert changed.methods == [SFT, "MaPO"]  # the start is always there
    assert changed.flags_of("MaPO", 0.2)["kl_anchor"] == 0.1
    assert changed.betas == [0.2]
    assert read_recipe("sentiment", "small", ["train.report=null"]).flags_of("DPO", 0.1).get("report") is None
    assert "report" not in read_recipe("sentiment", "small", ["train.report=null"]).flags_of("DPO", 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("betaz=[1]", "unknown name 'betaz'.*did you mean betas"),
        ("betas=0.1", "betas must be a list"),
        ("betas=[0.1, 0.1]", "different numbers"),
        ("betas=[-1]", "above 0"),
        ("betas=[]", "betas is empty, and DPO needs one"),
        ("seeds=[1, 1]", "a seed twice"),
        ("seeds=[0.5]", "whole numbers"),
        ("methods=[DPOO]", "unknown name 'DPOO'.*did you mean DPO"),
        ("method_betas.SimPOO=[1]", "did you mean SimPO"),
        ("train.beta=0.3", "train.beta is set by the experiment"),
        ("method_settings.DPO.seed=1", "seed is set by the experiment"),
        ("sft.output_dir=x", "sft.output_dir is set by the experiment"),
        ("pairs.margn=1", "unknown name 'margn'.*did you mean margin"),
        ("pairs.margin=-1", "must be at least 0"),
        ("pairs.strategy=best", "not one of best_worst"),
        ("prepare.eval_fraction=2", "must be at most 0.9"),
        ("evaluate.prompts=many", "must be a whole number"),
        ("evaluate.top_p=0", "must be above 0"),
        ("evaluate.prompts=true", "must be a whole number"),
        ("reward.kind=taste", "not one of"),
        ("train=3", "must be a section"),
        ("train.max_steps.x=3", "is no section"),
        ("task=dialogue", "is a recipe of task 'dialogue'"),
        ("nothing", "must be KEY=VALUE"),
        ("data.colour=x", "unknown name 'colour'"),
        ("betas=[", "not valid YAML"),
    ],
)
def test_wrong_settings_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe("sentiment", "small", [change])


def test_unknown_tasks_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean sentiment"):
        read_recipe("sentimnt", "small")
    with pytest.raises(ValueError, match=r"has no size 'smal'.*did you mean small"):
        read_recipe("sentiment", "smal")
    with pytest.raises(ValueError, match="no such file"):
        read_recipe("sentiment", str(tmp_path / "own.yaml"))
    own = tmp_path / "own.yaml"
    own.write_text("task: sentiment\nsize: mine\nstart: model\nmethods: [DPO]\nbetas: [0.1]\n")
    recipe = read_recipe("sentiment", str(own))
    assert (recipe.size, recipe.start, recipe.evaluate["prompts"]) == ("mine", "model", 64)
    own.write_text("task: sentiment\nsize: mine\nmethods: [DPO]\nbetas: [0.1]\n")
    with pytest.raises(ValueError, match="give start"):
        read_recipe("sentiment", str(own))


def _touch(folder: Path, recipe: Any) -> None:
    for names in recipe.data.values():
        for name in names:
            (folder / name).write_text("x")


def test_files_are_found_replaced_and_missed_together(tmp_path: Path) -> None:
    recipe = read_recipe("sentiment", "small")
    with pytest.raises(ValueError, match="data files are missing") as error:
        resolve_sources(recipe, str(tmp_path))
    for name in ("imdb_scored.jsonl.gz", "vader_lexicon.zip", "--data_dir"):
        assert name in str(error.value)
    _touch(tmp_path, recipe)
    found = resolve_sources(recipe, str(tmp_path))
    assert found["texts"] == [str(tmp_path / "movie_reviews.zip"), str(tmp_path / "sentence_polarity.zip")]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("x")
    changed = resolve_sources(read_recipe("sentiment", "small", data=[f"rows={mine}"]), str(tmp_path))
    assert changed["rows"] == [str(mine)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "movie_reviews.zip").write_text("x")
    by_name = read_recipe("sentiment", "small", data=[str(elsewhere / "movie_reviews.zip")])
    assert by_name.data["texts"] == [str(elsewhere / "movie_reviews.zip"), "sentence_polarity.zip"]
    with pytest.raises(ValueError, match="write ROLE=FILE; roles of sentiment are rows"):
        read_recipe("sentiment", "small", data=["unknown.zip"])


def test_hub_ids_are_no_missing_files() -> None:
    recipe = read_recipe("dialogue", "paper")
    assert resolve_sources(recipe) == {"rows": ["Anthropic/hh-rlhf"]}
    with pytest.raises(ValueError, match="needs rows"):
        resolve_sources(read_recipe("dialogue", "paper", ["data={}"]))


@pytest.mark.parametrize("task", TASKS)
def test_roles_have_descriptions(task: str) -> None:
    recipe = read_recipe(task, "small")
    assert set(recipe.data) <= set(ROLES[task])


def test_how_many_sandboxes_there_are_changes_no_stage() -> None:
    def keys(*changes: str) -> dict[str, str]:
        return plan_of(read_recipe("code", "small", changes), {"rows": ["hub/rows"]}).keys

    assert keys("evaluate.workers=7", "pairs.workers=3") == keys()
    assert keys("evaluate.timeout=9") != keys()
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        read_recipe("code", "small", ["evaluate.workers=0"])


def test_runs_that_were_judged_by_another_scale_of_rouge_are_judged_again() -> None:
    recipe = read_recipe("summarisation", "small")
    (first, *_) = plan_of(recipe, {"rows": ["hub/rows"]}).runs()
    assert first.settings["reward"]["scale"] == 100
    (other, *_) = plan_of(read_recipe("sentiment", "small"), {}).runs()
    assert "scale" not in other.settings["reward"]


def test_seeds_share_the_start_unless_asked_otherwise() -> None:
    shared = plan_of(read_recipe("sentiment", "small"), {})
    assert [name for name in shared.stages if name.startswith("sft")] == ["sft"]
    own = plan_of(read_recipe("sentiment", "small", ["sft_per_seed=true"]), {})
    assert [name for name in own.stages if name.startswith("sft")] == [f"sft seed {seed}" for seed in (0, 1, 2)]
    world = plan_of(read_recipe("playground", "small"), {})
    assert world.stages["train DPO β 0.1 seed 1"].needs == {"sft": "sft seed 1", "pairs": "pairs seed 1"}
