"""A run that reads the reference from a cache is the run that has the reference beside it: everything logged, evaluation,
and the weights of policy and mask after some steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from sparsepo import LearnedMask, SparsePOTrainer
from tests.support import perturbed, tiny_model

from .cache_runs import LEARNED, ReferenceCalls, calls, trainer_of  # noqa: F401 - a fixture
from .running import assert_close, logged, mask_state, moved, policy_state, prepared_rows, without_clocks

OBJECTIVES: dict[str, dict[str, Any]] = {
    "common": {**LEARNED},
    "independent": {**LEARNED, "mask_sharing": "independent", "mask_position": "token"},
    "sparse": {**LEARNED, "mask_target_sparsity": 0.4, "mask_sparsity_warmup": 1, "mask_layers": "last"},
    "gate": {**LEARNED, "mask_gate": "hard_concrete", "mask_l1_reward": 0.05, "logging_steps": 2},
    "mapo": {"objective": "mapo"},
    "mapo-kl": {"objective": "mapo", "mask_on": "kl", "mask_position": "token", "mask_activation_groups": ["resid"]},
    "random": {"mask": "random", "mask_random_sparsity": 0.3},
    "tdpo1": {"objective": "tdpo1"},
    "tdpo2": {"objective": "tdpo2"},
    "dpo": {"objective": "dpo"},
    "dpo-anchor": {"objective": "dpo", "kl_anchor": 0.1},
}
DEFAULT = [
    ("gpt2", False, "common"),
    ("llama", True, "independent"),
    ("gemma2", True, "common"),
    ("gpt2", True, "mapo"),
    ("llama", False, "mapo-kl"),
    ("llama", True, "tdpo2"),
    ("gpt2", False, "dpo"),
    ("gpt2", True, "dpo-anchor"),
    ("llama", True, "sparse"),
    ("gpt2", False, "gate"),
]
ALL = [(a, lora, o) for a in ("gpt2", "llama", "gemma2") for lora in (False, True) for o in OBJECTIVES]
CASES = [
    pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.long, id="-".join(map(str, case))) for case in ALL
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Rows to train on, more than a batch, and held-out rows."""
    folder = tmp_path_factory.mktemp("rows")
    return prepared_rows(folder, 7), prepared_rows(folder, 3, seed=1)


def run(trainer: SparsePOTrainer) -> dict[str, Any]:
    start = policy_state(trainer)
    trainer.train()
    found = {"policy": policy_state(trainer), "log": logged(trainer), "metrics": without_clocks(trainer.evaluate())}
    found["mask"] = mask_state(trainer) if trainer.masker is not None and trainer.masker.is_trainable else {}
    assert moved(start, found["policy"]) > 1e-3
    return found


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("policy", "mask"):
        assert_close(one[part], other[part], rtol=2e-4, atol=5e-6)
    assert len(one["log"]) == len(other["log"])
    for mine, theirs in zip([*one["log"], one["metrics"]], [*other["log"], other["metrics"]], strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("architecture", "lora", "objective"), CASES)
def test_cached_equals_uncached(
    tmp_path: Path,
    sets: tuple[Dataset, Dataset],
    calls: ReferenceCalls,  # noqa: F811
    architecture: str,
    lora: bool,
    objective: str,
) -> None:
    rows, held_out = sets
    settings = {"architecture": architecture, "lora": lora, "eval_dataset": held_out, **OBJECTIVES[objective]}
    uncached = run(trainer_of(tmp_path / "uncached", rows, **settings))
    assert calls.count > 0
    trainer = trainer_of(tmp_path / "cached", rows, cache=tmp_path / "cache", **settings)
    calls.count = 0
    cached = run(trainer)
    assert calls.count == 0
    assert trainer.ref_model is None
    assert_same_run(uncached, cached)


@pytest.mark.parametrize("lora", [False, True])
def test_with_the_dense_scorer(tmp_path: Path, sets: tuple[Dataset, Dataset], lora: bool) -> None:
    rows, held_out = sets
    settings = {"lora": lora, "eval_dataset": held_out, "scorer": "dense", **LEARNED}
    runs = [
        run(trainer_of(tmp_path / str(cache), rows, cache=cache, **settings)) for cache in (None, tmp_path / "cache")
    ]
    assert_same_run(*runs)


def test_a_finished_learned_mask_is_kept_as_numbers(tmp_path: Path, sets: tuple[Dataset, Dataset]) -> None:
    rows, held_out = sets

    def mask() -> LearnedMask:
        made = LearnedMask(32, 2, sharing="independent", init="ones", seed=3)
        return made.requires_grad_(False)

    runs = []
    for cache in (None, tmp_path / "cache"):
        models = {**_models(), "mask": mask()}
        trainer = trainer_of(tmp_path / str(cache), rows, cache=cache, eval_dataset=held_out, models=models)
        runs.append(run(trainer))
    assert_same_run(*runs)
    assert trainer._cache.sets[0].plan.token_bytes().keys() == {"logps", "hidden", "reward_mask", "kl_mask"}


def test_a_fitted_start_keeps_the_reference_until_it_is_fitted(
    tmp_path: Path,
    sets: tuple[Dataset, Dataset],
    calls: ReferenceCalls,  # noqa: F811
) -> None:
    rows, held_out = sets
    settings = {"mask_init": "mapo", "mask_init_pairs": 4, "eval_dataset": held_out, "mask_learning_rate": 1.0}
    uncached = run(trainer_of(tmp_path / "uncached", rows, **settings))
    trainer = trainer_of(tmp_path / "cached", rows, cache=tmp_path / "cache", **settings)
    assert trainer.ref_model is not None
    calls.count = 0
    cached = run(trainer)
    assert trainer.ref_model is None
    assert calls.count == 2  # teacher and states of one batch
    assert_same_run(uncached, cached)


def test_states_keep_the_type_in_which_the_reference_ran(tmp_path: Path, sets: tuple[Dataset, Dataset]) -> None:
    rows, held_out = sets
    runs = []
    for cache in (None, tmp_path / "cache"):
        models = {name: model.to(torch.bfloat16) for name, model in _models().items()}
        trainer = trainer_of(tmp_path / str(cache), rows, cache=cache, eval_dataset=held_out, models=models, **LEARNED)
        runs.append(trainer.score(trainer.data_collator([held_out[i] for i in range(3)])))
    part = trainer._cache.sets[1]
    path = part.folder.path / part.folder.blocks[0].file
    kept = load_file(path)
    assert kept["states"].dtype == kept["hidden"].dtype == torch.bfloat16
    assert kept["logps"].dtype == torch.float32
    assert sum(value.nbytes for name, value in kept.items() if name in part.plan.fields()) == (
        part.tokens * sum(part.plan.token_bytes().values())
    )
    for side in ("chosen", "rejected"):
        for name in ("ref_logps", "kl", "reward_mask"):
            left, right = (getattr(getattr(scores, side), name) for scores in runs)
            torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-2)  # rows padded otherwise round otherwise


def _models() -> dict[str, Any]:
    reference = tiny_model("gpt2", head_scale=3.0)
    return {"model": perturbed(reference), "ref_model": reference}
