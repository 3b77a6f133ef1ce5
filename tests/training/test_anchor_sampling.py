"""The KL anchor under sparse masks: a random share of the masked tokens, unbiased, and the same however rows are batched
and whatever is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sparsepo.masks.base import NoiseKey
from sparsepo.scoring.skipping import anchor_sample
from tests.support import perturbed, tiny_model

from .running import assert_close, assert_same, build, policy_state, prepared_rows, run_config

SPARSE = {"mask": "random", "mask_random_sparsity": 0.7, "kl_anchor": 0.5, "max_steps": 3, "optim": "sgd"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 8)


def trained(folder: Path, rows: Dataset, **settings):
    reference = tiny_model("gpt2")
    config = run_config(folder, **{**SPARSE, "learning_rate": 0.3, **settings})
    trainer = build(config, rows, model=perturbed(reference), ref_model=reference)
    trainer.train()
    return trainer


def test_the_share_weighs_its_inverse_and_kept_tokens_one():
    g = torch.Generator().manual_seed(0)
    response = torch.rand(40, 200, generator=g) < 0.8
    kept = response & (torch.rand(40, 200, generator=g) < 0.3)
    noise = NoiseKey(0, 0, torch.arange(40), torch.arange(200).expand(40, 200))
    values = torch.rand(40, 200, generator=g)
    exact = (values * response).sum()
    estimates = []
    for step in range(300):
        scored, weight = anchor_sample(kept, response, noise.at_step(step), 0.25)
        assert ((weight > 0) == scored).all()
        assert (weight[kept] == 1).all()
        assert set(weight[scored & ~kept].tolist()) <= {4.0}
        assert not (scored & ~response).any()
        estimates.append((weight * values).sum())
    found = torch.stack(estimates)
    variance = (1 - 0.25) / 0.25 * (values[response & ~kept] ** 2).sum()
    assert abs(found.mean() - exact) < 4 * (variance / 300).sqrt()
    assert 0.7 < found.var() / variance < 1.4


def test_logging_changes_no_training(tmp_path: Path, rows: Dataset) -> None:
    """Logged steps score every token for their metrics; the loss sees the same sample."""
    often, never = (trained(tmp_path, rows, logging_steps=n) for n in (1, 100))
    assert_close(policy_state(often), policy_state(never), 1e-5, 1e-7)


def test_micro_batches_draw_the_same_tokens(tmp_path: Path, rows: Dataset) -> None:
    whole = trained(tmp_path, rows, per_device_train_batch_size=8, logging_steps=100)
    parts = trained(tmp_path, rows, per_device_train_batch_size=2, gradient_accumulation_steps=4, logging_steps=100)
    assert_close(policy_state(whole), policy_state(parts), 2e-4, 2e-6)


def test_dense_and_fused_scorers_agree(tmp_path: Path, rows: Dataset) -> None:
    fused, dense = (trained(tmp_path, rows, scorer=name, logging_steps=100) for name in ("fused", "dense"))
    assert_close(policy_state(fused), policy_state(dense), 2e-4, 2e-6)


def test_the_sample_matters_and_a_share_of_one_is_exact(tmp_path: Path, rows: Dataset) -> None:
    whole, everything = (
        trained(tmp_path, rows, logging_steps=100, **more)
        for more in ({"kl_anchor_share": 1.0}, {"skip_masked": False})
    )
    assert_same(policy_state(whole), policy_state(everything))
    sampled = trained(tmp_path, rows, logging_steps=100)
    with pytest.raises(AssertionError):
        assert_close(policy_state(sampled), policy_state(whole), 2e-4, 2e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_anchor_share": 0.5, "kl_anchor": 0.0}, "no effect with kl_anchor=0"),
        ({"kl_anchor_share": 0.5, "objective": "dpo", "mask": None, "mask_random_sparsity": None}, "reads no mask"),
        ({"kl_anchor_share": 0.5, "skip_masked": False}, "no effect with skip_masked=False"),
        ({"kl_anchor_share": 1.5}, r"must lie in \(0, 1\]"),
        ({"kl_anchor_share": 0.0}, "kl_anchor_share"),
    ],
)
def test_settings_that_nothing_reads_are_refused(tmp_path: Path, rows: Dataset, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(run_config(tmp_path, **{**SPARSE, **settings}), rows)
