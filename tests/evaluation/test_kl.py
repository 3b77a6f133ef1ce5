"""Sequence KL against a direct computation, and against the definition by enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsepo.evaluation import Completion, sample_completions, sequence_kl
from sparsepo.playground.models import build_model, build_tokenizer
from sparsepo.playground.world import World

PROMPTS = ["the", "review of silver paper : the film", "a plot with"]


def samples_of(model: Any, tokenizer: Any) -> list[Completion]:
    groups = sample_completions(model, tokenizer, PROMPTS, max_new_tokens=6, samples_per_prompt=2, seed=0)
    return [completion for group in groups for completion in group]


def test_equals_the_direct_sum(policy: Any, reference: Any, tokenizer: Any) -> None:
    samples = samples_of(policy, tokenizer)
    expected = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
        with torch.no_grad():
            p = policy(ids).logits[0].double().softmax(-1)
            q = reference(ids).logits[0].double().softmax(-1)
        total = 0.0
        for t in range(len(sample.token_ids)):
            place = len(sample.prompt_ids) - 1 + t
            total += float((p[place] * (p[place] / q[place]).log()).sum())
        expected.append(total)
    for batch_size in (1, 4, 64):
        result = sequence_kl(policy, reference, samples, batch_size=batch_size)
        torch.testing.assert_close(result, torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)
    assert min(expected) > 0.1


def test_zero_for_the_same_model_and_not_symmetric(policy: Any, reference: Any, tokenizer: Any) -> None:
    samples = samples_of(policy, tokenizer)
    assert sequence_kl(policy, policy, samples).abs().max() == 0
    forth, back = sequence_kl(policy, reference, samples), sequence_kl(reference, policy, samples)
    assert (forth - back).abs().max() > 0.1


def test_mean_agrees_with_the_log_ratio_of_samples(policy: Any, reference: Any, tokenizer: Any) -> None:
    """E_π[Σ_t KL_t] = E_π[log π(y) − log π_ref(y)]: another estimator of the same number, within its noise."""
    groups = sample_completions(
        policy, tokenizer, ["the film"], max_new_tokens=3, samples_per_prompt=1500, seed=1, batch_size=500
    )
    samples = groups[0]
    ratios = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
        with torch.no_grad():
            logps = [model(ids).logits[0].double().log_softmax(-1) for model in (policy, reference)]
        places = range(len(sample.prompt_ids) - 1, ids.shape[1] - 1)
        ratios.append(sum(float(logps[0][t, ids[0, t + 1]] - logps[1][t, ids[0, t + 1]]) for t in places))
    measured = torch.tensor(ratios)
    exact = sequence_kl(policy, reference, samples)
    error = measured.std() / len(samples) ** 0.5
    assert abs(float(exact.mean() - measured.mean())) < 4 * float(error)
    assert exact.std() < measured.std()


def test_modes_are_restored_and_vocabularies_compared(policy: Any, tokenizer: Any) -> None:
    samples = samples_of(policy, tokenizer)
    other = build_model(build_tokenizer(World()), hidden_size=16, layers=1, heads=2)
    other.resize_token_embeddings(len(tokenizer) + 5)
    other.train()
    with pytest.raises(ValueError, match="vocabulary"):
        sequence_kl(policy, other, samples)
    assert other.training
    assert not policy.training
