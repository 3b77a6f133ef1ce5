"""Samples while training: the run is bit for bit the same, a resumed run goes on, failures stop nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sparsepo.evaluation.rewards import get_reward
from sparsepo.evaluation.sampling import SamplingSettings
from sparsepo.evaluation.training_samples import TrainingSamples, read_samples
from tests.support import tiny_tokenizer
from tests.training.running import assert_same, build, logged, mask_state, policy_state, prepared_rows, run_config

PROMPTS = ["the film was", "a story"]
SETTINGS = SamplingSettings(samples=2, max_new_tokens=6, seed=1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 12)


def trained(folder: Path, rows: Dataset, callback: TrainingSamples | None, resume: Any = None, **how: Any) -> Any:
    """A trainer after three steps, from the same random state."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    lora = how.pop("lora", False)
    trainer = build(run_config(folder, **{"max_steps": 3, "mask_dropout": 0.1, **how}), rows, lora=lora)
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def sampler(every: int = 2, **changes: Any) -> TrainingSamples:
    return TrainingSamples(tiny_tokenizer(), PROMPTS, every, SETTINGS, get_reward("playground"), **changes)


@pytest.mark.parametrize("lora", [False, True])
def test_the_run_does_not_notice(tmp_path: Path, rows: Dataset, lora: bool) -> None:
    """With dropout on (LoRA's), so that a drawn number or a changed mode would show."""
    found = []
    for callback in (None, sampler(1)):
        trainer = trained(tmp_path / str(len(found)), rows, callback, lora=lora)
        state = {
            "policy": policy_state(trainer),
            "mask": mask_state(trainer),
            "log": logged(trainer),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state()[1].tolist(),
            "training": [module.training for module in trainer.model.modules()],
            "generation": trainer.model.generation_config.to_dict(),
        }
        found.append(state)
    assert_same(found[0], found[1])


def test_rows_of_every_time_with_the_same_numbers(tmp_path: Path, rows: Dataset) -> None:
    trained(tmp_path, rows, sampler(2))
    found = read_samples(tmp_path)
    assert [row["step"] for row in found] == [0] * 4 + [2] * 4 + [3] * 4
    assert [(row["prompt"], row["sample"]) for row in found[:4]] == [(p, s) for p in PROMPTS for s in range(2)]
    assert {row["seed"] for row in found} == {1}
    assert all(row["reward"] == get_reward("playground")([""], [row["text"]])[0] for row in found)
    trained(tmp_path, rows, sampler(3, batch_size=1))  # a new run in the folder replaces the old one's samples
    again = read_samples(tmp_path)
    assert [row["step"] for row in again] == [0] * 4 + [3] * 4
    assert again == [row for row in found if row["step"] != 2]


def test_a_resumed_run_goes_on(tmp_path: Path, rows: Dataset) -> None:
    trained(tmp_path, rows, sampler(1), save_strategy="steps", save_steps=2)
    whole = read_samples(tmp_path)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "pro')  # what an interruption leaves
    trained(tmp_path, rows, sampler(1), resume=str(tmp_path / "checkpoint-2"), save_strategy="no")
    resumed = read_samples(tmp_path)
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    assert resumed == whole


def test_what_cannot_work_is_said_at_once_and_failures_later_stop_nothing(
    tmp_path: Path, rows: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        TrainingSamples(tiny_tokenizer(), [], 1, SETTINGS)
    with pytest.raises(ValueError, match="every=0"):
        TrainingSamples(tiny_tokenizer(), PROMPTS, 0, SETTINGS)
    long = TrainingSamples(tiny_tokenizer(), ["the " * 125], 1, SETTINGS)
    with pytest.raises(ValueError, match="more than the model's 128 positions"):
        trained(tmp_path, rows, long)

    def broken(*_: Any) -> None:
        raise RuntimeError("out of paper")

    monkeypatch.setattr("sparsepo.evaluation.training_samples.LocalSampler.sample", broken)
    trainer = trained(tmp_path, rows, sampler(1))
    assert trainer.state.global_step == 3
    assert caplog.text.count("out of paper") == 1
