"""What the health monitor computes and judges, on arrays: sums that add up, shares of variance, comparisons, findings."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsepo import LearnedMask
from sparsepo.masks.advice import Advice
from sparsepo.masks.health import MaskHealth
from sparsepo.masks.health_types import SIGNATURES, HealthProfile, Reading
from sparsepo.masks.moments import BINS, GROUPINGS, MaskSums, TokenGroups, position_bins
from sparsepo.masks.stability import Stability, average_ranks, compare_masks, fingerprint


def batch(seed: int, rows: int, length: int):
    """Masks, response tokens in one block a row, row weights and sequence positions."""
    g = torch.Generator().manual_seed(seed)
    start = torch.randint(0, length, (rows,), generator=g)
    size = torch.randint(1, length + 1, (rows,), generator=g)
    column = torch.arange(length)
    response = (column >= start[:, None]) & (column < (start + size)[:, None])
    mask = torch.relu(torch.randn(rows, length, generator=g))
    weight = torch.randint(0, 2, (rows,), generator=g).float()
    return mask, response, weight, column.expand(rows, -1) + 3


def sums(mask, response, weight=None, position=None, limit=None) -> MaskSums:
    weight = torch.ones(len(mask)) if weight is None else weight
    position = torch.arange(mask.shape[1]).expand_as(mask) if position is None else position
    return MaskSums(TokenGroups(response, weight, position).sums_of(mask, limit))


# ---- sums ----


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), st.integers(0, 9))
def test_sums_add_up_over_batches_whatever_the_padding(seed, rows, length, cut):
    mask, response, weight, position = batch(seed, rows, length)
    whole = sums(mask, response, weight, position, 1.0).vector
    padded = [torch.nn.functional.pad(x, (0, 5)) for x in (mask, response, position)]
    parts = [
        sums(padded[0][part], padded[1][part], weight[part], padded[2][part], 1.0).vector
        for part in (slice(0, cut), slice(cut, None))
        if len(mask[part])
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40))
def test_sums_are_those_of_the_counted_tokens(seed, rows, length):
    mask, response, weight, position = batch(seed, rows, length)
    found = sums(mask, response, weight, position)
    counted = mask[response & (weight > 0)[:, None]].double()
    assert found.tokens == len(counted)
    if len(counted):
        assert found.mean == pytest.approx(float(counted.mean()))
        assert found.variance == pytest.approx(float(counted.var(unbiased=False)), abs=1e-9)
        assert found.share("zeros") == pytest.approx(float((counted == 0).double().mean()))


def test_values_that_are_not_finite_are_counted_and_left_out():
    mask = torch.tensor([[1.0, float("nan"), float("inf"), 3.0, float("nan")]])
    found = sums(mask, torch.tensor([[True, True, True, True, False]]))
    assert found.share("non_finite") == 0.5
    assert float(found.vector[2]) == 4


def test_bins_grow_with_the_number_and_are_exact_for_small_ones():
    bins = position_bins(torch.arange(1 << 17))
    assert bins[:16].tolist() == list(range(16))
    assert bool((bins.diff() >= 0).all())
    assert bins.max() == BINS - 1


@pytest.mark.parametrize("name", [*GROUPINGS, "response"])
def test_a_function_of_one_thing_is_explained_by_it(name):
    g = torch.Generator().manual_seed(0)
    rows, length = 64, 120
    size = torch.randint(40, length + 1, (rows, 1), generator=g)
    column = torch.arange(length).expand(rows, -1)
    response = column < size
    prompt = torch.randint(2, 60, (rows, 1), generator=g)
    of = {
        "start": column,
        "end": size - 1 - column,
        "relative": (column / size).mul(32).floor(),
        "sequence": prompt + column,
        "length": size.expand_as(column),
        "response": torch.rand(rows, 1, generator=g).expand(rows, length),
    }[name].float()
    explained = sums(of + 0.01 * torch.rand(of.shape, generator=g), response, None, prompt + column).explained()
    assert explained[name] > 0.97
    unrelated = {"length", "response"} if name not in ("length", "response") else {"start", "end", "relative"}
    assert all(explained[other] < 0.6 for other in unrelated)


@given(st.integers(0, 10**6), st.integers(4, 30), st.integers(8, 60))
def test_an_unrelated_mask_is_explained_by_nothing_however_few_the_tokens(seed, rows, length):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(20, rows, length, generator=g)
    found = [sums(part, torch.ones(rows, length, dtype=torch.bool)).explained() for part in mask]
    for name in (*GROUPINGS, "response"):
        assert abs(np.mean([values[name] for values in found])) < 0.1  # unadjusted, bins / tokens: up to 0.25


# ---- comparisons ----


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_ranks_are_averages_over_ties(values):
    expected = [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]
    assert average_ranks(torch.tensor(values)).tolist() == expected


def test_masks_compared_with_themselves_a_rescaled_one_and_the_reverse():
    mask = torch.relu(torch.randn(500, generator=torch.Generator().manual_seed(1)))
    for other in (mask, 7 * mask, mask**3):
        assert compare_masks(mask, other) == Stability(pytest.approx(1.0), pytest.approx(1.0), 500)
    reverse = compare_masks(mask, torch.relu(mask.max() / 3 - mask))
    assert reverse.rank_correlation < 0
    assert reverse.kept_overlap < 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_unrelated_masks_overlap_no_more_than_chance(share):
    g = torch.Generator().manual_seed(2)
    masks = [torch.rand(20_000, generator=g) * (torch.rand(20_000, generator=g) < share) for _ in range(2)]
    found = compare_masks(*masks)
    assert abs(found.rank_correlation) < 0.05
    assert abs(found.kept_overlap) < 0.05


def test_nothing_is_said_of_constant_masks():
    assert compare_masks(torch.ones(5), torch.rand(5)) == Stability(None, None, 5)


def test_fingerprints_tell_single_bits_and_places_apart():
    head = LearnedMask(8, 2, init="ones")
    same = copy.deepcopy(head)
    assert fingerprint(head) == fingerprint(same)
    weight = same.mask_heads()[0].layer_weight
    with torch.no_grad():
        weight[0, 3] = torch.nextafter(weight[0, 3], torch.tensor(9.0))
    assert fingerprint(head) != fingerprint(same)
    with torch.no_grad():
        weight.copy_(head.mask_heads()[0].layer_weight.flip(1))
    assert fingerprint(head) != fingerprint(same)


def test_fingerprints_see_buffers():
    modules = [nn.BatchNorm1d(2) for _ in range(2)]
    assert fingerprint(modules[0]) == fingerprint(modules[1])
    modules[1].running_mean += 1
    assert fingerprint(modules[0]) != fingerprint(modules[1])


# ---- judging ----


def health(**profile) -> MaskHealth:
    settings = {
        "masks": {"reward": "the reward mask"},
        "signatures": SIGNATURES,
        "beta": 0.1,
        "advice": Advice("learned", 1e-3, "ones", {"reward": 0.1}),
    }
    return MaskHealth(HealthProfile(**{**settings, **profile}))


def reading(step: int, mask: torch.Tensor, limit: float | None = None, **values) -> Reading:
    found = sums(mask, torch.ones_like(mask, dtype=torch.bool), limit=limit)
    return Reading(step, 100, {"reward": found}, **{"gradient": {"reward": 1.0}, "log_ratio": 1.0, **values})


def good(seed: int = 0) -> torch.Tensor:
    return torch.rand(30, 40, generator=torch.Generator().manual_seed(seed)) + 0.1


def names(found: MaskHealth) -> set[str]:
    return {finding.name for finding in found.findings}


def test_a_finding_appears_once_and_clears_once():
    monitor = health()
    events = []
    for step in range(1, 15):
        mask = torch.zeros(30, 40) if 4 <= step <= 8 else good(step)
        events += monitor.read(reading(step, mask))
    collapse = [(e["event"], e["step"], e["since"]) for e in events if e["name"] == "collapse"]
    assert collapse == [("appeared", 5, 4), ("cleared", 12, 4)]
    assert events == monitor.history
    assert monitor.findings == []
    message = next(e["message"] for e in events if e["name"] == "collapse")
    assert "100 % of its values are zero" in message
    assert "(since step 4)" in message
    assert "lower mask_l1_reward (0.1 → 0.033)" in message


def test_one_odd_reading_is_no_finding():
    monitor = health()
    for step in range(1, 9):
        monitor.read(reading(step, good() * 9 if step == 5 else good(step)))
    assert monitor.history == []


def test_zero_gradient_counts_once_the_policy_has_moved_and_the_mask_may():
    for values in ({"log_ratio": 0.0}, {"held": True}):
        monitor = health()
        for step in range(1, 9):
            monitor.read(reading(step, good(step), gradient={"reward": 0.0}, **values))
        assert names(monitor) == set()
    for step in range(9, 12):
        monitor.read(reading(step, good(step), gradient={"reward": 0.0}))
    assert names(monitor) == {"no_gradient"}


def test_missing_sparsity_is_judged_after_half_of_the_training_that_asks_for_it():
    for free, first in (((), 50), ((40,), 70), ((0.1, 30), 70)):
        monitor = health(l1={"reward": 0.1}, free=free)
        for step in range(1, 100):
            monitor.read(reading(step, good(step)))
        assert [(f.name, f.since) for f in monitor.findings] == [("no_sparsity", first)]
    monitor = health()  # nothing asked
    for step in range(1, 100):
        monitor.read(reading(step, good(step)))
    assert monitor.history == []


def test_drift_reports_the_effective_beta_and_grants_asked_sparsity_its_zeros():
    sparse = good() * (torch.rand(30, 40, generator=torch.Generator().manual_seed(5)) < 0.2)
    for l1, expected in (({}, {"drift"}), ({"reward": 0.1}, set())):
        monitor = health(l1=l1)
        for step, mask in enumerate([good(), sparse, sparse, sparse], start=1):
            monitor.read(reading(step, mask))
        assert names(monitor) == expected
    monitor = health()
    for step in range(1, 5):
        monitor.read(reading(step, good() * (1 if step == 1 else 4)))
    assert "×4" in monitor.findings[0].message
    assert f"{0.1 * float(good().mean()):.3g}" in monitor.findings[0].message


def test_position_is_judged_on_enough_tokens_only():
    ramp = torch.arange(40).float().expand(30, -1) + 1
    monitor = health()
    for step in range(1, 4):
        monitor.read(reading(step, ramp[:4]))
    assert names(monitor) == set()
    for step in range(4, 8):
        monitor.read(reading(step, ramp))
    assert names(monitor) == {"position"}
    assert "position in the response" in monitor.findings[0].message


def test_differing_processes_and_broken_values_are_reported_at_once():
    monitor = health()
    monitor.read(reading(1, good().index_fill(0, torch.tensor(3), float("nan")), differing=(1, 3)))
    assert names(monitor) == {"disagreement", "non_finite"}
    assert "those of 1, 3" in next(f.message for f in monitor.findings if f.name == "disagreement")


def test_flicker_needs_two_comparisons():
    monitor = health()
    monitor.read_stability(20, 10, {"reward": Stability(0.1, 0.0, 400)})
    assert names(monitor) == set()
    monitor.read_stability(30, 20, {"reward": Stability(0.2, None, 400)})
    assert names(monitor) == {"flicker"}
    assert "rank correlation 0.20" in monitor.findings[0].message
    for step in (40, 50, 60, 70):
        monitor.read_stability(step, step - 10, {"reward": Stability(0.9, 0.8, 400)})
    assert names(monitor) == set()


def test_saturation_at_the_limit_and_without_spread():
    for mask, words in ((torch.ones(30, 40), "upper limit"), (torch.full((30, 40), 0.4), "same for every token")):
        monitor = health(limit=1.0)
        for step in range(1, 40):
            monitor.read(reading(step, mask, 1.0))
        found = [(f.name, f.since) for f in monitor.findings]
        assert found == [("saturated", 25)]
        assert words in monitor.findings[0].message


@given(st.integers(1, 11))
def test_a_monitor_restored_from_its_state_goes_on_as_if_never_interrupted(cut):
    masks = [good(1), good(2), *[torch.zeros(30, 40)] * 3, *[torch.arange(40.0).expand(30, -1)] * 3, *[good(3)] * 4]
    whole, first = health(), health()
    for step, mask in enumerate(masks, start=1):
        whole.read(reading(step, mask))
        if step <= cut:
            first.read(reading(step, mask))
    second = health()
    second.load_state(json.loads(json.dumps(first.state())))
    for step, mask in enumerate(masks[cut:], start=cut + 1):
        second.read(reading(step, mask))
    assert second.history == whole.history
    assert second.state() == whole.state()
    assert {event["name"] for event in whole.history} >= {"collapse", "drift", "position"}
