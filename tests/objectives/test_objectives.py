"""Objectives by hand arithmetic, and the properties that tie them together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.objectives import OBJECTIVES, PairScores, TokenScores, get_objective

F64 = torch.float64


def side(seed: int, lengths: list[int], width: int, junk: float = 0.0) -> TokenScores:
    """Random scores; ``junk`` is what stands outside the responses."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]

    def draw(low: float, high: float) -> torch.Tensor:
        values = low + (high - low) * torch.rand(shape, generator=g, dtype=F64)
        return torch.where(mask, values, torch.full_like(values, junk))

    return TokenScores(draw(-4, 0), draw(-4, 0), draw(0, 0.5), draw(0, 2), draw(0, 2), mask)


def pair(seed: int = 0, lengths: tuple[list[int], list[int]] = ([3, 1], [2, 4]), junk: float = 0.0) -> PairScores:
    return PairScores(side(seed, lengths[0], 5, junk), side(seed + 1, lengths[1], 5, junk))


def sums(s: TokenScores, i: int) -> dict[str, float]:
    """Σ r, Σ k, Σ m_u r, Σ m_d k, Σ log π and |y| of response i, in plain Python."""
    n = int(s.response_mask[i].sum())
    policy, ref, kl = s.policy_logps[i, :n].tolist(), s.ref_logps[i, :n].tolist(), s.kl[i, :n].tolist()
    mu, md = s.reward_mask[i, :n].tolist(), s.kl_mask[i, :n].tolist()
    r = [p - q for p, q in zip(policy, ref, strict=True)]
    return {
        "r": sum(r),
        "k": sum(kl),
        "mr": sum(m * x for m, x in zip(mu, r, strict=True)),
        "mk": sum(m * x for m, x in zip(md, kl, strict=True)),
        "logp": sum(policy),
        "n": n,
        "mu": sum(mu),
        "md": sum(md),
    }


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z))


BY_HAND = {
    "sparsepo": lambda w, x, b: -log_sigmoid(b * (w["mr"] - x["mr"] - (x["mk"] - w["mk"]))),
    "mapo": lambda w, x, b: -log_sigmoid(b * (w["mr"] - x["mr"] - (x["mk"] - w["mk"]))),
    "tdpo1": lambda w, x, b: -log_sigmoid(b * (w["r"] - x["r"] - (x["k"] - w["k"]))),
    "tdpo2": lambda w, x, b: -log_sigmoid(b * (w["r"] - x["r"] - 0.5 * (x["k"] - w["k"]))),
    "dpo": lambda w, x, b: -log_sigmoid(b * (w["r"] - x["r"])),
    "simpo": lambda w, x, b: -log_sigmoid(b * w["logp"] / w["n"] - b * x["logp"] / x["n"] - 0.5),
    "dpop": lambda w, x, b: -log_sigmoid(b * (w["r"] - x["r"] - 5 * max(0.0, -w["r"]))),
}
REWARDS = {
    "sparsepo": lambda s, b, chosen: b * (s["mr"] + s["mk"]),
    "mapo": lambda s, b, chosen: b * (s["mr"] + s["mk"]),
    "tdpo1": lambda s, b, chosen: b * (s["r"] + s["k"]),
    "tdpo2": lambda s, b, chosen: b * (s["r"] + 0.5 * s["k"]),
    "dpo": lambda s, b, chosen: b * s["r"],
    "simpo": lambda s, b, chosen: b * s["logp"] / s["n"],
    "dpop": lambda s, b, chosen: b * (s["r"] - (5 * max(0.0, -s["r"]) if chosen else 0.0)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_rewards_by_hand(name):
    scores, beta = pair(3), 0.7
    result = get_objective(name, beta=beta)(scores)
    for i in range(2):
        w, x = sums(scores.chosen, i), sums(scores.rejected, i)
        assert result.loss[i].item() == pytest.approx(BY_HAND[name](w, x, beta), rel=1e-12)
        assert result.chosen_rewards[i].item() == pytest.approx(REWARDS[name](w, beta, True), rel=1e-12)
        assert result.rejected_rewards[i].item() == pytest.approx(REWARDS[name](x, beta, False), rel=1e-12)


@pytest.mark.parametrize(
    ("link", "smoothing", "expected"),
    [
        ("sigmoid", 0.0, lambda z, *_: -log_sigmoid(z)),
        ("sigmoid", 0.1, lambda z, *_: -0.9 * log_sigmoid(z) - 0.1 * log_sigmoid(-z)),
        ("hinge", 0.0, lambda z, *_: max(0.0, 1 - z)),
        ("robust", 0.1, lambda z, *_: (-0.9 * log_sigmoid(z) + 0.1 * log_sigmoid(-z)) / 0.8),
        ("ipo", 0.0, lambda z, w, x, b: (w["r"] / w["n"] - x["r"] / x["n"] - 1 / (2 * b)) ** 2),
    ],
)
def test_links_by_hand(link, smoothing, expected):
    scores, beta = pair(5), 0.4
    loss = get_objective("dpo", beta=beta, link=link, label_smoothing=smoothing)(scores).loss
    for i in range(2):
        w, x = sums(scores.chosen, i), sums(scores.rejected, i)
        assert loss[i].item() == pytest.approx(expected(beta * (w["r"] - x["r"]), w, x, beta), rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extra_terms_stand_outside_beta_and_rewards(name):
    scores = pair(7)
    plain = get_objective(name, beta=0.3)(scores)
    more = get_objective(name, beta=0.3, sft_weight=0.2, kl_anchor=0.4)(scores)
    for i in range(2):
        w, x = sums(scores.chosen, i), sums(scores.rejected, i)
        extra = -0.2 * w["logp"] / w["n"] + 0.4 * (w["k"] + x["k"])
        assert (more.loss[i] - plain.loss[i]).item() == pytest.approx(extra, rel=1e-9)
    assert torch.equal(more.chosen_rewards, plain.chosen_rewards)


def test_anchor_weight_reweights_tokens():
    scores = pair(8)
    for s in (scores.chosen, scores.rejected):
        s.anchor_weight = torch.full_like(s.kl, 2.0)
    plain, doubled = (get_objective("dpo", kl_anchor=lam)(pair(8)).loss for lam in (0.0, 0.5))
    assert torch.allclose(get_objective("dpo", kl_anchor=0.25)(scores).loss, doubled)
    assert not torch.allclose(plain, doubled)


def test_l1_is_added_per_pair():
    scores = pair(9)
    extra = get_objective("sparsepo", l1_reward=0.1, l1_kl=0.3)(scores).loss - get_objective("sparsepo")(scores).loss
    for i in range(2):
        w, x = sums(scores.chosen, i), sums(scores.rejected, i)
        assert extra[i].item() == pytest.approx(0.1 * (w["mu"] + x["mu"]) + 0.3 * (w["md"] + x["md"]), rel=1e-9)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=2, max_size=2), st.sampled_from(list(OBJECTIVES)))
def test_values_outside_responses_never_count(seed, lengths, name):
    """Also with inf and nan there, and with empty responses: values and gradients stay the same and finite."""
    lengths = (lengths, lengths[::-1])
    results = []
    for junk in (0.0, float("inf"), float("nan")):
        scores = pair(seed, lengths, junk)
        leaf = scores.chosen.policy_logps.requires_grad_()
        loss = get_objective(name, kl_anchor=0.1, sft_weight=0.1)(scores).loss
        loss.sum().backward()
        results.append((loss.detach(), torch.where(scores.chosen.response_mask, leaf.grad, 0)))
    for loss, gradient in results:
        assert loss.isfinite().all()
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@given(st.integers(0, 10_000))
def test_ones_give_tdpo1_and_no_kl_gives_dpo(seed):
    scores = pair(seed)
    for s in (scores.chosen, scores.rejected):
        s.reward_mask = s.kl_mask = None
    tdpo1 = get_objective("tdpo1")(scores)
    assert torch.allclose(get_objective("sparsepo")(scores).loss, tdpo1.loss, rtol=1e-14)
    for s in (scores.chosen, scores.rejected):
        s.kl = torch.zeros_like(s.kl)
    assert torch.allclose(get_objective("tdpo1")(scores).loss, get_objective("dpo")(scores).loss, rtol=1e-14)


@given(st.integers(0, 10_000), st.sampled_from(["sparsepo", "mapo", "tdpo1", "dpo", "simpo"]))
def test_swapping_the_sides_mirrors_the_margin(seed, name):
    scores = pair(seed)
    objective = get_objective(name, **({"gamma": 0.0} if name == "simpo" else {}))
    there, back = objective(scores), objective(PairScores(scores.rejected, scores.chosen))
    margin = there.chosen_rewards - there.rejected_rewards
    assert torch.allclose(there.loss, -torch.nn.functional.logsigmoid(margin))
    assert torch.allclose(back.loss, -torch.nn.functional.logsigmoid(-margin))
    assert torch.equal(there.chosen_rewards, back.rejected_rewards)


@given(st.integers(0, 1000), st.sampled_from(list(OBJECTIVES)))
def test_each_pair_stands_alone(seed, name):
    scores = pair(seed)
    whole = get_objective(name, kl_anchor=0.1)(scores).loss

    def one(s: TokenScores, i: int) -> TokenScores:
        return TokenScores(*(getattr(s, f)[i : i + 1] for f in ("policy_logps", "ref_logps", "kl", "reward_mask")),
                           s.kl_mask[i : i + 1], s.response_mask[i : i + 1])  # fmt: skip

    for i in range(2):
        alone = get_objective(name, kl_anchor=0.1)(PairScores(one(scores.chosen, i), one(scores.rejected, i))).loss
        assert torch.equal(whole[i : i + 1], alone)


def test_tdpo2_stops_the_gradient_of_the_chosen_kl():
    scores = pair(1)
    for s in (scores.chosen, scores.rejected):
        s.kl.requires_grad_()
    get_objective("tdpo2")(scores).loss.sum().backward()
    assert scores.chosen.kl.grad is None or not scores.chosen.kl.grad.any()
    assert scores.rejected.kl.grad.any()


def test_what_is_not_needed_may_be_missing():
    scores = pair(2)
    for s in (scores.chosen, scores.rejected):
        s.ref_logps = s.kl = s.reward_mask = s.kl_mask = None
    objective = get_objective("simpo")
    assert not objective.needs_reference
    assert not objective.needs_kl
    assert objective(scores).loss.isfinite().all()
    anchored = get_objective("simpo", kl_anchor=0.1)
    assert anchored.needs_reference
    assert anchored.needs_kl
    with pytest.raises(ValueError, match="kl is None"):
        anchored(scores)
    with pytest.raises(ValueError, match="ref_logps is None"):
        get_objective("dpo")(scores)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("spo", {}, "objective='spo' is unknown"),
        ("dpo", {"gamma": 1.0}, "gamma=1.0 is no setting of objective 'dpo'"),
        ("dpo", {"beta": 0.0}, "beta=0.0 must be a finite number above 0"),
        ("dpo", {"beta": float("nan")}, "beta=nan must be a finite number above 0"),
        ("dpo", {"link": "exo"}, "link='exo' is not open to 'dpo'"),
        ("dpop", {"link": "ipo"}, "link='ipo' is not open to 'dpop'"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing=0.5 must lie in \[0, 0.5\)"),
        ("dpo", {"link": "ipo", "label_smoothing": 0.1}, "has no meaning for link='ipo'"),
        ("tdpo2", {"alpha": -1.0}, "alpha=-1.0 must be a finite number of at least 0"),
        ("sparsepo", {"l1_kl": float("inf")}, "l1_kl=inf must be a finite number of at least 0"),
        ("sparsepo", {"kl_anchor": -0.1}, "kl_anchor=-0.1"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get_objective(name, **settings)
