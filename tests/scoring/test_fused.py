"""The fused scorer equals the dense one and the float64 oracle: values and all gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives import OBJECTIVES, get_objective
from sparsepo.scoring import DenseScorer, FusedScorer, LMHead, ScorerInputs
from sparsepo.scoring.skipping import tokens_that_count

VOCABULARY, WIDTH = 37, 8


def problem(seed, lengths, dtype=torch.float32, bias=False, scale=1.0, softcap=None, tied=False):
    """Leaves and scorer inputs for sequences with the given numbers of response tokens (chosen first)."""
    g = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max([*lengths, 1]) + 2

    def leaf(*shape, low=None):
        values = torch.randn(*shape, generator=g, dtype=torch.float64)
        return (values.abs() * low if low else values).to(dtype).requires_grad_()

    leaves = {"hidden": leaf(rows, width, WIDTH), "weight": leaf(VOCABULARY, WIDTH)}
    if bias:
        leaves["bias"] = leaf(VOCABULARY)
    mask_dtype = torch.promote_types(dtype, torch.float32)
    for name in ("reward", "kl"):
        values = torch.relu(torch.randn(rows, width, generator=g, dtype=torch.float64))
        leaves[name] = values.to(mask_dtype).requires_grad_()
    other = (
        leaves["hidden"].detach().double() + 0.3 * torch.randn(rows, width, WIDTH, generator=g, dtype=torch.float64)
    ).to(dtype)
    reference = (
        leaves["weight"].detach()
        if tied
        else torch.randn(VOCABULARY, WIDTH, generator=g, dtype=torch.float64).to(dtype)
    )
    keep = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    inputs = ScorerInputs(
        targets=torch.randint(0, VOCABULARY, (rows, width), generator=g),
        response_mask=keep,
        policy_hidden=leaves["hidden"],
        policy_head=LMHead(leaves["weight"], leaves.get("bias"), scale, softcap),
        reference_hidden=other,
        reference_head=LMHead(reference, None, scale, softcap),
        masks=TokenMasks(leaves["reward"], leaves["kl"]),
        pair_weight=torch.rand(rows // 2, generator=g) + 0.1,
        statistics=True,
    )
    return leaves, inputs


def outcome(scorer, seed, lengths, objective, **more):
    leaves, inputs = problem(seed, lengths, **more)
    output = scorer(inputs, objective, True)
    output.loss.backward()
    return output, {name: leaf.grad for name, leaf in leaves.items()}


def assert_same(one, other, tolerance):
    (a, grads), (b, expected) = one, other
    assert torch.allclose(a.loss.double(), b.loss.double(), rtol=tolerance, atol=1e-7)
    for field in ("loss", "chosen_rewards", "rejected_rewards"):
        x, y = getattr(a.pair_loss, field).double(), getattr(b.pair_loss, field).double()
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance)
    for side in ("chosen", "rejected"):
        for field in ("policy_logps", "ref_logps", "kl"):
            x, y = getattr(getattr(a.scores, side), field).double(), getattr(getattr(b.scores, side), field).double()
            assert torch.allclose(x, y, rtol=tolerance, atol=10 * tolerance)
    assert a.statistics.keys() == b.statistics.keys()
    for name in ("entropy", "mean_logits"):
        assert torch.allclose(
            a.statistics[name].double(), b.statistics[name].double(), rtol=tolerance, atol=10 * tolerance
        )
    for name, gradient in expected.items():
        if gradient is None:
            assert grads[name] is None or not grads[name].any(), name
            continue
        limit = tolerance * gradient.double().abs().max().clamp(min=1e-3)
        assert (grads[name].double() - gradient.double()).abs().max() <= limit, name


LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=3).flatmap(
    lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 6), min_size=len(w), max_size=len(w)))
)


@settings(max_examples=120)
@given(
    st.integers(0, 10_000),
    LENGTHS,
    st.sampled_from(list(OBJECTIVES)),
    st.sampled_from([1e-5, 0.002, 0.01, 64.0]),
    st.booleans(),
    st.sampled_from([(1.0, None), (0.5, None), (1.0, 2.5), (2.0, 30.0)]),
)
def test_equals_the_float64_oracle(seed, lengths, name, budget, bias, cap):
    """Any shapes, also empty and one-token responses, and budgets smaller than one row."""
    objective = get_objective(name, kl_anchor=0.05, sft_weight=0.1)
    more = {"bias": bias, "scale": cap[0], "softcap": cap[1]}
    oracle = outcome(DenseScorer(), seed, [*lengths[0], *lengths[1]], objective, dtype=torch.float64, **more)
    exact = outcome(FusedScorer(budget), seed, [*lengths[0], *lengths[1]], objective, dtype=torch.float64, **more)
    assert_same(exact, oracle, 1e-9)
    single = outcome(FusedScorer(budget), seed, [*lengths[0], *lengths[1]], objective, **more)
    assert_same(single, oracle, 3e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_dense_in_float32(name):
    objective = get_objective(name)
    for budget in (0.001, 64):
        one = outcome(FusedScorer(budget), 1, [5, 3, 1, 4], objective)
        assert_same(one, outcome(DenseScorer(), 1, [5, 3, 1, 4], objective), 1e-5)


def test_half_precision_keeps_float32_statistics():
    objective = get_objective("sparsepo", beta=0.5)
    fused = outcome(FusedScorer(), 2, [6, 4, 3, 5], objective, dtype=torch.bfloat16)
    dense = outcome(DenseScorer(), 2, [6, 4, 3, 5], objective, dtype=torch.bfloat16)
    assert torch.allclose(fused[0].loss, dense[0].loss, rtol=1e-5)
    for name in ("hidden", "weight", "reward", "kl"):
        scale = dense[1][name].float().abs().max()
        assert (fused[1][name].float() - dense[1][name].float()).abs().max() <= 1e-2 * scale, name


def test_frozen_head_and_no_gradient():
    leaves, inputs = problem(3, [4, 2])
    leaves["weight"].requires_grad_(False)
    output = FusedScorer()(inputs, get_objective("sparsepo"), True)
    output.loss.backward()
    assert leaves["weight"].grad is None
    assert leaves["hidden"].grad.any()
    with torch.no_grad():
        again = FusedScorer()(inputs, get_objective("sparsepo"), True)
    assert torch.equal(output.loss.detach(), again.loss)
    assert not again.loss.requires_grad


def test_nothing_kept_gives_zero_gradients_not_none():
    leaves, inputs = problem(4, [0, 0])
    FusedScorer()(inputs, get_objective("sparsepo"), True).loss.backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves.values())


def test_no_reference_is_projected_where_there_is_none():
    leaves, inputs = problem(5, [3, 4])
    inputs.reference_hidden = inputs.reference_head = inputs.masks = None
    fused = FusedScorer()(inputs, get_objective("simpo"), False)
    fused.loss.backward()
    gradient = leaves["hidden"].grad.clone()
    leaves["hidden"].grad = None
    dense = DenseScorer()(inputs, get_objective("simpo"), False)
    dense.loss.backward()
    assert torch.allclose(gradient, leaves["hidden"].grad, atol=1e-6)
    assert fused.scores.chosen.ref_logps is None


def test_a_second_backward_is_refused():
    _, inputs = problem(6, [3, 4])
    loss = FusedScorer()(inputs, get_objective("dpo"), True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="needs scorer='dense'"):
        loss.backward()


def test_loss_scaling_does_not_underflow():
    """fp16's GradScaler multiplies the loss: the gradients follow, formed in float32."""
    leaves, inputs = problem(7, [3, 4])
    (FusedScorer()(inputs, get_objective("dpo"), True).loss * 65536).backward()
    scaled = leaves["hidden"].grad.clone()
    leaves["hidden"].grad = None
    DenseScorer()(inputs, get_objective("dpo"), True).loss.backward()
    assert torch.allclose(scaled / 65536, leaves["hidden"].grad, rtol=1e-4, atol=1e-8)


def test_budget_must_be_positive():
    with pytest.raises(ValueError, match="budget_mib=0 must be above 0"):
        FusedScorer(0)


@settings(max_examples=60)
@given(st.integers(0, 10_000), LENGTHS, st.sampled_from(["sparsepo", "mapo"]), st.sampled_from(["none", "chosen"]))
def test_leaving_masked_tokens_out_changes_nothing(seed, lengths, name, declared):
    """Loss, rewards and every gradient; the masks' own where they are positive (a ReLU is flat at zero)."""
    objective = get_objective(name, beta=0.5, sft_weight=0.2 if declared == "chosen" else 0.0, l1_reward=0.01)
    assert objective.declared_tokens == declared
    outcomes = []
    for scorer, skip in ((DenseScorer(), False), (DenseScorer(), True), (FusedScorer(0.01), True)):
        leaves, inputs = problem(seed, [*lengths[0], *lengths[1]])
        if skip:
            inputs.kept = tokens_that_count(inputs.masks, inputs.response_mask, declared, flat_at_zero=True)
        output = scorer(inputs, objective, True)
        output.loss.backward()
        positive = {n: (leaf.grad * (leaf > 0) if n in ("reward", "kl") else leaf.grad) for n, leaf in leaves.items()}
        outcomes.append((output, positive))
    whole, whole_grads = outcomes[0]
    for output, grads in outcomes[1:]:
        assert torch.allclose(output.pair_loss.loss, whole.pair_loss.loss, rtol=1e-5)
        assert torch.allclose(output.pair_loss.chosen_rewards, whole.pair_loss.chosen_rewards, atol=1e-5)
        for leaf, gradient in whole_grads.items():
            assert torch.allclose(grads[leaf], gradient, atol=2e-5 * gradient.abs().max().clamp(min=1).item()), leaf


def test_what_must_not_be_left_out():
    _, inputs = problem(1, [3, 2])
    for declared, flat in (("all", True), ("none", False)):
        assert tokens_that_count(inputs.masks, inputs.response_mask, declared, flat) is None
    assert tokens_that_count(None, inputs.response_mask, "none", True) is None
    assert get_objective("sparsepo", kl_anchor=0.1).declared_tokens == "none"  # the anchor takes a weighted sample
    assert get_objective("dpo").declared_tokens == "all"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    """The trainer runs scorers inside its mixed-precision context: rows and their products stay float32."""
    objective = get_objective("sparsepo", beta=0.5)
    plain = outcome(FusedScorer(), 8, [4, 3, 2, 5], objective, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = outcome(FusedScorer(), 8, [4, 3, 2, 5], objective, dtype=dtype)
    assert_same(mixed, plain, 1e-6)


def test_small_half_precision_gradients_survive_loss_scaling():
    """fp16 states: the scale must be on the gradients before they are cast, or the small ones become zero."""
    leaves, inputs = problem(9, [6, 5, 4, 6], dtype=torch.float16)
    inputs.pair_weight = torch.full((2,), 1e-5)
    (FusedScorer()(inputs, get_objective("dpo"), True).loss * 65536).backward()
    scaled = leaves["hidden"].grad.float() / 65536
    exact, exact_inputs = problem(9, [6, 5, 4, 6], dtype=torch.float32)
    exact_inputs.pair_weight = inputs.pair_weight
    with torch.no_grad():
        exact["hidden"].copy_(leaves["hidden"])
        exact["weight"].copy_(leaves["weight"])
    exact_inputs.reference_hidden = inputs.reference_hidden.float()
    exact_inputs.reference_head = LMHead(inputs.reference_head.weight.float())
    FusedScorer()(exact_inputs, get_objective("dpo"), True).loss.backward()
    expected = exact["hidden"].grad
    assert torch.allclose(scaled, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())
    assert not ((scaled == 0) & (expected.abs() > 1e-4 * expected.abs().max())).any()


def test_soft_cap_with_probabilities_that_underflow():
    leaves, inputs = problem(10, [3, 3], softcap=50.0)
    with torch.no_grad():
        leaves["hidden"].mul_(200)
    output = FusedScorer()(inputs, get_objective("tdpo1"), True)
    output.loss.backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves.values())
