"""The dense scorer against direct computation, and hidden states against logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.masks import DenseMask
from sparsepo.objectives import get_objective
from sparsepo.scoring import DenseScorer, LMHead, ScorerInputs, dense_pair_scores, token_kl, token_logps
from tests.support import collated, perturbed, tiny_model

PAIRS = [([5, 6, 7], [8, 9, 2], [10, 2]), ([11, 12], [13, 2], [14, 15, 16, 17, 2])]


def test_kl_and_logps_against_torch_distributions():
    g = torch.Generator().manual_seed(0)
    p, q = (4 * torch.randn(6, 11, generator=g, dtype=torch.float64) for _ in range(2))
    targets = torch.randint(0, 11, (6,), generator=g)
    policy, reference = (torch.distributions.Categorical(logits=z) for z in (p, q))
    assert torch.allclose(token_logps(p, targets), policy.log_prob(targets))
    assert torch.allclose(token_kl(q, p), torch.distributions.kl_divergence(reference, policy))
    assert (token_kl(q, q).abs() < 1e-15).all()


def test_kl_keeps_its_digits_between_near_equal_models():
    """Early in training the KL is about 1e-4: float32 must resolve it."""
    g = torch.Generator().manual_seed(1)
    q = 3 * torch.randn(64, 5000, generator=g)
    p = q + 0.02 * torch.randn(64, 5000, generator=g)
    exact = token_kl(q.double(), p.double())
    assert (token_kl(q, p).double() - exact).abs().max() < 2e-6  # the KL itself is about 2e-4


@given(st.floats(0.1, 4), st.sampled_from([None, 2.0, 30.0]), st.booleans())
def test_head_scale_cap_and_bias(scale, softcap, has_bias):
    g = torch.Generator().manual_seed(2)
    weight, hidden = torch.randn(7, 4, generator=g), torch.randn(3, 4, generator=g)
    bias = torch.randn(7, generator=g) if has_bias else None
    z = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    expected = z if softcap is None else softcap * torch.tanh(z / softcap)
    assert torch.allclose(LMHead(weight, bias, scale, softcap).logits(hidden), expected, atol=1e-6)


def test_half_precision_heads_give_float32_logits():
    head = LMHead(torch.randn(7, 4).bfloat16())
    hidden = torch.randn(3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.logits(hidden)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, hidden.float() @ head.weight.float().T)


def inputs_of(policy, reference, batch, **more):
    states = [m.base_model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1] for m in (policy, reference)]
    heads = [LMHead(m.get_output_embeddings().weight) for m in (policy, reference)]
    keep = batch["completion_mask"][:, 1:].bool()
    return ScorerInputs(batch["input_ids"][:, 1:], keep, states[0], heads[0], states[1], heads[1], **more)


@pytest.mark.parametrize("name", ["sparsepo", "tdpo2", "simpo"])
def test_hidden_states_and_logits_give_the_same(name):
    reference = tiny_model("gpt2").eval()
    policy = perturbed(reference)
    batch = collated(PAIRS)
    objective = get_objective(name, kl_anchor=0.1)
    expected = objective(dense_pair_scores(policy, reference, batch, DenseMask()))
    expected.loss.sum().backward()
    gradients = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    output = DenseScorer()(inputs_of(policy, reference, batch, statistics=True), objective, True)
    assert torch.allclose(output.pair_loss.loss, expected.loss, rtol=1e-6)
    output.pair_loss.loss.sum().backward()
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert set(output.statistics) == {"entropy", "mean_logits", "is_top1"}


def test_a_batch_without_response_tokens_gives_zero_gradients():
    reference = tiny_model("gpt2").eval()
    policy = perturbed(reference)
    batch = collated(PAIRS)
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    output = DenseScorer()(inputs_of(policy, reference, batch), get_objective("tdpo1"), True)
    output.pair_loss.loss.mean().backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_the_reference_gets_no_gradient_and_keeps_its_mode():
    reference = tiny_model("gpt2").train()
    policy = perturbed(reference)
    get_objective("tdpo1")(dense_pair_scores(policy, reference, collated(PAIRS))).loss.sum().backward()
    assert reference.training
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    reference = tiny_model("gpt2").eval()
    policy = perturbed(reference)
    plain = dense_pair_scores(policy, reference, collated(PAIRS))
    batch = collated(PAIRS, side=side)
    extra = {"input_ids": 7, "attention_mask": 0, "completion_mask": 0}
    padded = {
        k: torch.nn.functional.pad(v, (5, 0) if side == "left" else (0, 5), value=extra[k]) for k, v in batch.items()
    }
    scores = dense_pair_scores(policy, reference, padded)
    for name in ("chosen", "rejected"):
        one, other = getattr(plain, name), getattr(scores, name)
        for field in ("policy_logps", "ref_logps", "kl"):
            a, b = getattr(one, field)[one.response_mask], getattr(other, field)[other.response_mask]
            assert torch.allclose(a, b, atol=1e-5)
