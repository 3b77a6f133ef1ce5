"""Whole runs over a cache: nothing is loaded or run the second time, evaluation, resuming, sets that come later."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from sparsepo.training import trl_bridge
from tests.support import perturbed, tiny_model

from .cache_runs import (  # noqa: F401 - a fixture
    LEARNED,
    ReferenceCalls,
    adapter,
    calls,
    files_of,
    row_files,
    saved_model,
    trainer_of,
)
from .running import assert_close, assert_same, logged, mask_state, policy_state, prepared_rows, without_clocks


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("rows")
    return prepared_rows(folder, 7), prepared_rows(folder, 3, seed=1)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that TRL has loaded."""
    loaded: list[str] = []
    load = trl_bridge._dpo_module.create_model_from_path

    def counted(name: str, *args: Any, **kwargs: Any) -> Any:
        loaded.append(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(trl_bridge._dpo_module, "create_model_from_path", counted)
    return loaded


def policy_of(model: str) -> Any:
    """A policy that has moved away from the model of its name, which is its reference."""
    return perturbed(AutoModelForCausalLM.from_pretrained(model))


@pytest.mark.parametrize("objective", ["sparsepo", "mapo", "dpo"])
def test_the_second_run_neither_loads_nor_runs_the_reference(
    tmp_path: Path,
    sets: tuple[Dataset, Dataset],
    calls: ReferenceCalls,  # noqa: F811
    loads: list[str],
    objective: str,
) -> None:
    rows, held_out = sets
    model, cache = saved_model(tmp_path / "model"), tmp_path / "cache"
    runs = []
    for number in range(3):  # the first without a cache
        calls.count = 0
        loads.clear()
        trainer = trainer_of(
            tmp_path / str(number),
            rows,
            models={"model": policy_of(model)},
            cache=cache if number else None,
            eval_dataset={"held": held_out},
            objective=objective,
            max_steps=2,
        )
        filled = calls.count
        assert loads == ([] if number == 2 else [model])
        assert (trainer.ref_model is None) == (number > 0)
        trainer.train()
        metrics = trainer.evaluate()
        assert (calls.count == filled) == (number > 0)
        assert (filled > 0) == (number == 1)
        runs.append((logged(trainer), without_clocks(metrics), policy_state(trainer)))
    assert_same(runs[1], runs[2])
    for one, other in zip([*runs[0][0], *runs[0][1:]], [*runs[1][0], *runs[1][1:]], strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_model_by_name_and_one_in_memory_share_the_cache_of_their_reference(
    tmp_path: Path, sets: tuple[Dataset, Dataset], loads: list[str]
) -> None:
    rows, _ = sets
    model = saved_model(tmp_path / "model")
    trainer_of(tmp_path, rows, models={"model": model}, cache=tmp_path / "cache")
    assert loads == [model, model]
    before = files_of(tmp_path / "cache")
    loads.clear()
    trainer_of(tmp_path, rows, models={"model": model}, cache=tmp_path / "cache")
    assert loads == [model]
    trainer = trainer_of(tmp_path, rows, models={"model": policy_of(model)}, cache=tmp_path / "cache")
    assert loads == [model]
    assert files_of(tmp_path / "cache") == before
    assert trainer.score(trainer.data_collator([rows[0], rows[1]])).chosen.kl.max() > 1e-2


def test_the_freed_reference_is_held_by_nobody(tmp_path: Path, sets: tuple[Dataset, Dataset]) -> None:
    reference = tiny_model()
    freed = weakref.ref(reference)
    models = {"model": tiny_model(seed=1), "ref_model": reference}
    trainer = trainer_of(tmp_path, sets[0], models=models, cache=tmp_path / "cache")
    del reference, models
    gc.collect()
    assert freed() is None
    trainer.train()


def test_a_trained_adapter_is_the_reference_of_its_own_cache(
    tmp_path: Path,
    sets: tuple[Dataset, Dataset],
    calls: ReferenceCalls,  # noqa: F811
) -> None:
    """The reference of an adapter that is trained on is a frozen copy of it: another adapter, another key."""
    rows, held_out = sets
    runs = []
    for seed, cache in ((0, None), (0, "cache"), (1, "cache")):
        torch.manual_seed(seed)
        models = {"model": get_peft_model(tiny_model(head_scale=3.0), adapter())}
        cache = None if cache is None else tmp_path / cache
        trainer = trainer_of(tmp_path / "o", rows, models=models, cache=cache, eval_dataset=held_out, max_steps=2)
        with torch.no_grad():  # at equality, signs of rewards would be signs of rounding
            for name, parameter in trainer.model.named_parameters():
                if ".default." in name:
                    parameter.mul_(1.5)
        calls.count = 0
        trainer.train()
        assert (calls.count == 0) == (cache is not None)
        runs.append((logged(trainer), policy_state(trainer)))
        assert len(row_files(tmp_path / "cache")) == (0 if cache is None else 2 * (1 + seed))
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert_close(runs[0][1], runs[1][1], rtol=2e-4, atol=5e-6)


def test_a_trained_head_beside_an_adapter_is_not_taken_for_the_references(
    tmp_path: Path, sets: tuple[Dataset, Dataset]
) -> None:
    rows, held_out = sets
    lora = adapter(modules_to_save=["lm_head"], target_modules=["q_proj"])
    runs = []
    for cache in (None, tmp_path / "cache"):
        settings = {"learning_rate": 0.05, "objective": "tdpo1", "eval_dataset": held_out, "cache": cache}
        trainer = trainer_of(tmp_path / "o", rows, architecture="llama", lora=lora, **settings)
        trainer.train()
        runs.append((logged(trainer), policy_state(trainer), without_clocks(trainer.evaluate())))
    assert trainer._cache.sets[0].plan.needs_head
    assert any("lm_head" in name for name in runs[0][1])
    for one, other in zip([*runs[0][0], *runs[0][1:]], [*runs[1][0], *runs[1][1:]], strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_resuming_is_bit_for_bit(tmp_path: Path, sets: tuple[Dataset, Dataset], lora: bool) -> None:
    rows, held_out = sets
    settings = {
        **LEARNED,
        "optim": "adamw_torch",
        "learning_rate": 2e-3,
        "mask_learning_rate": 2e-2,
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "lora": lora,
        "eval_dataset": held_out,
        "cache": tmp_path / "cache",
    }
    whole = trainer_of(tmp_path / "whole", rows, **settings)
    whole.train()
    torch.manual_seed(99)
    resumed = trainer_of(tmp_path / "resumed", rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same(policy_state(resumed), policy_state(whole))
    assert_same(mask_state(resumed), mask_state(whole))
    assert_same(logged(resumed, after=3)[:-1], logged(whole, after=3)[:-1])


# ---- sets that come later ----


def test_a_later_evaluation_set_is_added_where_the_reference_is_at_hand(
    tmp_path: Path,
    sets: tuple[Dataset, Dataset],
    calls: ReferenceCalls,  # noqa: F811
) -> None:
    rows, held_out = sets
    plain = trainer_of(tmp_path / "plain", rows, lora=True, objective="dpo")
    cached = trainer_of(tmp_path / "cached", rows, lora=True, objective="dpo", cache=tmp_path / "cache")
    expected = without_clocks(plain.evaluate(held_out))
    calls.count = 0
    assert_close(expected, without_clocks(cached.evaluate(held_out)), rtol=1e-3, atol=1e-5)
    assert calls.count == 1
    cached.evaluate(held_out)
    assert calls.count == 1
    # training rows have no KL there, evaluated they need one
    assert_close(without_clocks(plain.evaluate(rows)), without_clocks(cached.evaluate(rows)), rtol=1e-3, atol=1e-5)


def test_a_later_evaluation_set_is_refused_where_the_reference_is_gone(
    tmp_path: Path, sets: tuple[Dataset, Dataset]
) -> None:
    rows, held_out = sets
    trainer = trainer_of(tmp_path, rows, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="is not in the reference cache and the reference is no longer loaded"):
        trainer.evaluate(held_out)
    trainer_of(tmp_path, rows, eval_dataset=held_out, cache=tmp_path / "cache")  # another run fills it
    assert trainer.evaluate(held_out)["eval_loss"] > 0
    assert trainer.evaluate(rows)["eval_loss"] > 0  # the training rows are there, with their KL


def test_rows_that_are_not_cached_are_an_error_and_never_scored_by_the_policy(
    tmp_path: Path, sets: tuple[Dataset, Dataset]
) -> None:
    rows, held_out = sets
    trainer = trainer_of(tmp_path, rows, cache=tmp_path / "cache")
    batch = trainer.data_collator([held_out[0], held_out[1]])
    with pytest.raises(RuntimeError, match="rows that are not in the reference cache"):
        trainer.score(batch)
    known = trainer.score(trainer.data_collator([rows[3], rows[1]]))
    assert known.chosen.kl.abs().max() > 0
    # the same tokens with another border between prompt and response are another row
    moved = {
        **rows[3],
        "prompt_ids": rows[3]["prompt_ids"] + rows[3]["chosen_ids"][:1],
        "chosen_ids": rows[3]["chosen_ids"][1:],
    }
    with pytest.raises(RuntimeError, match="rows that are not in the reference cache"):
        trainer.score(trainer.data_collator([moved, rows[1]]))


def test_the_cache_lies_where_no_upload_takes_it(tmp_path: Path, sets: tuple[Dataset, Dataset]) -> None:
    trainer = trainer_of(tmp_path / "out", sets[0], precompute_ref=True)
    paths = row_files(tmp_path / "out")
    assert len(paths) == 1
    assert paths[0].relative_to(tmp_path / "out").parts[0].startswith("_")
    trainer.train()
