"""Every way through a group of pairs gives the oracle's values and gradients: trained and frozen heads, cached reference,
sampled anchor, budgets smaller than a row; and an objective's word that its direction is fixed is true."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo.objectives import LINKS, OBJECTIVES, PairScores, TokenScores, get_objective
from sparsepo.scoring import CachedReference, DenseScorer, FusedScorer, LMHead
from sparsepo.scoring import walks as walks_module

from .test_fused import LENGTHS, assert_same, problem

CASES = [(name, link) for name in OBJECTIVES for link in LINKS if link in OBJECTIVES[name].links]


def settings_of(name, link):
    return {} if name in ("simpo",) else {"link": link}


def scores_of(seed, shift, lengths=((3, 1, 4), (2, 5, 4))):
    """Random scores of three pairs; ``shift`` moves the log-ratios far from zero."""
    g = torch.Generator().manual_seed(seed)

    def side(counts):
        shape = (len(counts), 6)
        draw = lambda: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
        logps = (-draw().abs() + shift).requires_grad_()
        kl = draw().abs().requires_grad_()
        keep = torch.arange(6)[None] < torch.tensor(counts)[:, None]
        return TokenScores(logps, -draw().abs(), kl, torch.relu(draw()), torch.relu(draw()), keep)

    return PairScores(side(lengths[0]), side(lengths[1]))


@pytest.mark.parametrize(("name", "link"), CASES)
def test_a_fixed_direction_is_fixed(name, link):
    """One factor a pair relates the gradients at any scores to those at policy = reference, if the objective says so."""
    objective = get_objective(name, **settings_of(name, link))
    parts = []
    for shift in (0.0, 0.7, -2.0):
        scores = scores_of(1, shift)
        if shift == 0.0:
            for side in (scores.chosen, scores.rejected):
                side.policy_logps = torch.zeros_like(side.policy_logps, requires_grad=True)
                side.ref_logps = torch.zeros_like(side.ref_logps)
                side.kl = torch.zeros_like(side.kl, requires_grad=True)
        leaves = [side_leaf for side in (scores.chosen, scores.rejected) for side_leaf in (side.policy_logps, side.kl)]
        grads = torch.autograd.grad(objective(scores).loss.sum(), leaves, allow_unused=True)
        parts.append(
            torch.cat([torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)], 1)
        )
    start = parts[0]
    assert (start.abs().amax(1) > 0).all()
    for other in parts[1:]:
        factor = (other * start).sum(1, keepdim=True) / (start * start).sum(1, keepdim=True)
        same = torch.allclose(other, factor * start, atol=1e-12)
        assert same == objective.has_fixed_direction or (name == "dpop" and not objective.has_fixed_direction)


def test_terms_beside_the_margin_end_the_fixed_direction():
    assert get_objective("sparsepo").has_fixed_direction
    assert not get_objective("sparsepo", kl_anchor=0.1).has_fixed_direction
    assert not get_objective("dpo", sft_weight=0.1).has_fixed_direction
    assert not get_objective("dpop").has_fixed_direction


def outcome(scorer, seed, lengths, objective, frozen, change=None, **more):
    leaves, inputs = problem(seed, lengths, **more)
    if frozen:
        for name in ("weight", "bias"):
            if name in leaves:
                leaves[name].requires_grad_(False)
    if change is not None:
        change(inputs)
    output = scorer(inputs, objective, True)
    output.loss.backward()
    return output, {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}


@settings(max_examples=150)
@given(
    st.integers(0, 10_000),
    LENGTHS,
    st.sampled_from(CASES),
    st.sampled_from([1e-5, 0.0005, 0.002, 0.01, None]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(1.0, None), (0.5, None), (1.0, 2.5)]),
    st.sampled_from([{}, {"kl_anchor": 0.1}, {"sft_weight": 0.2}]),
)
def test_equals_the_float64_oracle(seed, lengths, case, budget, bias, frozen, cap, terms):
    objective = get_objective(case[0], **settings_of(*case), **terms)
    lengths = [*lengths[0], *lengths[1]]
    more = {"bias": bias, "scale": cap[0], "softcap": cap[1]}
    oracle = outcome(DenseScorer(), seed, lengths, objective, frozen, dtype=torch.float64, **more)
    assert_same(
        outcome(FusedScorer(budget), seed, lengths, objective, frozen, dtype=torch.float64, **more), oracle, 1e-9
    )
    assert_same(outcome(FusedScorer(budget), seed, lengths, objective, frozen, **more), oracle, 3e-5)


def cached_of(inputs):
    """What a cache holds of the inputs' reference, float64 arithmetic, stored in the states' type or better."""
    head, hidden = inputs.reference_head, inputs.reference_hidden.double()
    logits = LMHead(head.weight.double(), None if head.bias is None else head.bias.double(), head.scale).logits(hidden)
    logps = logits.log_softmax(-1)
    dtype = torch.promote_types(inputs.reference_hidden.dtype, torch.float32)
    return CachedReference(
        logps.gather(-1, inputs.targets[..., None]).squeeze(-1).to(dtype),
        logits.logsumexp(-1).to(dtype),
        hidden.to(dtype),
        (logps.exp() @ head.weight.double()).to(dtype),
    )


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    LENGTHS,
    st.sampled_from(CASES),
    st.sampled_from([1e-5, 0.002, None]),
    st.booleans(),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([{}, {"kl_anchor": 0.1}]),
)
def test_a_cached_reference_equals_its_head(seed, lengths, case, budget, bias, scale, terms):
    """Frozen head shared by policy and reference: the cached form gives the projection's values and gradients."""
    objective = get_objective(case[0], **settings_of(*case), **terms)
    lengths = [*lengths[0], *lengths[1]]

    def share_head(inputs):
        inputs.reference_head = LMHead(inputs.policy_head.weight.detach(), inputs.policy_head.bias, scale)

    def cache(inputs):
        share_head(inputs)
        inputs.cached = cached_of(inputs)
        inputs.reference_hidden = inputs.reference_head = None

    oracle = outcome(
        DenseScorer(), seed, lengths, objective, True, share_head, dtype=torch.float64, bias=bias, scale=scale
    )
    for scorer in (FusedScorer(budget), DenseScorer()):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            found = outcome(scorer, seed, lengths, objective, True, cache, dtype=dtype, bias=bias, scale=scale)
            assert_same(found, oracle, tolerance)


def test_the_cached_kl_keeps_its_digits_where_models_are_close():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(20_000, 64, generator=g) * 0.2
    _, inputs = problem(0, [6, 5])
    hidden = torch.randn(2, inputs.targets.shape[1], 64, generator=g)
    inputs.reference_hidden = hidden
    inputs.policy_hidden = (hidden + 0.02 * torch.randn(hidden.shape, generator=g)).requires_grad_()
    inputs.policy_head = inputs.reference_head = LMHead(weight)
    oracle_inputs = {
        "policy_hidden": inputs.policy_hidden.detach().double(),
        "reference_hidden": hidden.double(),
    }
    with torch.no_grad():
        wide = LMHead(weight.double())
        p, q = (wide.logits(oracle_inputs[n]).log_softmax(-1) for n in ("policy_hidden", "reference_hidden"))
        exact = (q.exp() * (q - p)).sum(-1)
    inputs.cached = cached_of(inputs)
    output = FusedScorer()(inputs, get_objective("tdpo1"), True)
    found = torch.cat([output.scores.chosen.kl, output.scores.rejected.kl])
    keep = inputs.response_mask
    assert (exact[keep] > 1e-4).all()
    assert (exact[keep] < 0.1).all()
    assert (found[keep] - exact[keep]).abs().max() < 2e-6


def test_a_cache_that_does_not_suit_is_refused():
    _, inputs = problem(0, [3, 2])
    inputs.cached = cached_of(inputs)
    for scorer in (FusedScorer(), DenseScorer()):
        with pytest.raises(ValueError, match="frozen head without soft-cap only; this head is trained"):
            scorer(inputs, get_objective("tdpo1"), True)
    inputs.cached = CachedReference(inputs.cached.logps)
    with pytest.raises(ValueError, match="holds log-probabilities only"):
        FusedScorer()(inputs, get_objective("tdpo1"), True)
    assert FusedScorer()(inputs, get_objective("dpo"), False).scores.chosen.kl is None


@settings(max_examples=60)
@given(st.integers(0, 10_000), LENGTHS, st.booleans(), st.sampled_from([0.002, None]))
def test_a_sampled_anchor_equals_the_dense_one(seed, lengths, frozen, budget):
    """Kept tokens with anchor weights: both scorers see the same objective."""
    objective = get_objective("sparsepo", kl_anchor=0.3)
    lengths = [*lengths[0], *lengths[1]]

    def sample(inputs):
        g = torch.Generator().manual_seed(seed)
        drawn = torch.rand(inputs.response_mask.shape, generator=g) < 0.3
        masked = (inputs.masks.reward > 0) | (inputs.masks.kl > 0)
        inputs.kept = inputs.response_mask & (masked | drawn)
        inputs.anchor_weight = masked + (~masked & drawn) / 0.3

    found = [
        outcome(scorer, seed, lengths, objective, frozen, sample, dtype=dtype)
        for scorer, dtype in ((DenseScorer(), torch.float64), (FusedScorer(budget), torch.float32))
    ]
    assert_same(found[1], found[0], 5e-5)


def ways_taken(monkeypatch, frozen, budget, objective, lengths, change=None):
    taken = []
    for name in ("_paired", "_directed", "_moments"):
        original = getattr(walks_module, name)
        monkeypatch.setattr(
            walks_module, name, lambda *a, name=name, original=original: (taken.append(name), original(*a))[1]
        )
    outcome(FusedScorer(budget), 0, lengths, get_objective(**objective), frozen, change)
    return set(taken)


@pytest.mark.parametrize(
    ("frozen", "budget", "objective", "way"),
    [
        (False, None, {"name": "sparsepo"}, "_directed"),
        (False, None, {"name": "sparsepo", "kl_anchor": 0.1}, "_paired"),
        (False, 0.0005, {"name": "sparsepo"}, "_paired"),  # a pair larger than the buffer
        (True, None, {"name": "sparsepo"}, "_directed"),
        (True, 0.0005, {"name": "sparsepo"}, "_directed"),
        (True, 0.0005, {"name": "sparsepo", "kl_anchor": 0.1}, "_moments"),
        (True, None, {"name": "sparsepo", "kl_anchor": 0.1}, "_paired"),
    ],
)
def test_the_way_that_costs_least_is_taken(monkeypatch, frozen, budget, objective, way):
    assert ways_taken(monkeypatch, frozen, budget, objective, [4, 3]) == {way}


@pytest.mark.parametrize("name", ["sparsepo", "tdpo2", "ipo"])
@pytest.mark.parametrize("budget", [None, 0.002, 1e-4])
def test_the_ways_that_gpus_take_give_the_same(monkeypatch, name, budget):
    """Where launches cost most: one group of all pairs where it fits, larger tiles where not."""
    monkeypatch.setattr(walks_module.Work, "is_on_gpu", property(lambda work: True))
    objective = get_objective("dpo", link="ipo") if name == "ipo" else get_objective(name)
    lengths = [5, 2, 0, 7, 1, 3]
    for frozen in (False, True):
        found = outcome(FusedScorer(budget), 5, lengths, objective, frozen)
        assert_same(found, outcome(DenseScorer(), 5, lengths, objective, frozen), 3e-5)
