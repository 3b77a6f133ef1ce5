"""The sparsity controller: the threshold is the quantile asked for, magnitude is kept, nothing collapses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsepo.masks.controller import SparsityController, threshold_for
from sparsepo.masks.gates import GATES, build_gate
from sparsepo.masks.head import MaskHead
from sparsepo.masks.responses import Responses

CONTROLLED = [name for name, gate in GATES.items() if gate.closes_at is not None]


def head_of() -> MaskHead:
    return MaskHead(4, 2, normalised=True, width=None, norm_eps=1e-5)


def drifting(step: int, count: int = 400, seed: int | None = None) -> Tensor:
    """Skewed numbers close together, whose level jumps about by far more than their spread at every step."""
    generator = torch.Generator().manual_seed(step if seed is None else seed)
    shape = torch.randn(count, generator=generator).exp()
    return 2 + math.sin(step) + 0.03 * (1 + step / 50) * (shape - 1)


def zeros(gate_name: str, head: MaskHead, values: Tensor) -> float:
    mask = build_gate(gate_name)(head.shifted(values), Responses(torch.arange(len(values)) // 20))
    return float((mask == 0).float().mean())


@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.parametrize("target", [0.3, 0.6, 0.8, 0.95])
def test_the_share_follows_the_ramp_and_is_held(name: str, target: float) -> None:
    controller, head = SparsityController.for_gate(build_gate(name), target), head_of()
    held, before = [], None
    for step in range(200):
        values = drifting(step)
        if step:
            asked = target * min((step - 1) / 100, 1.0)
            assert before == pytest.approx(asked, abs=0.01)
            held.append((zeros(name, head, drifting(step, 5000)), asked))
        before = controller.update(head, values, drifting(step + 1, seed=step), step / 100)
    late = torch.tensor(held[100:])
    assert (late[:, 0] - target).abs().max() < 0.06  # what 400 tokens a step, and one step's drift, allow
    assert abs(late[:, 0].mean() - target) < 0.02
    rising = torch.tensor(held[5:100])
    assert (rising[:, 0] - rising[:, 1]).abs().mean() < 0.04


@pytest.mark.parametrize("name", [name for name in CONTROLLED if not GATES[name].mean_one])
def test_kept_tokens_stay_at_one(name: str) -> None:
    """Without it a mask over a narrow distribution would be tiny, and β with it."""
    controller, head = SparsityController.for_gate(build_gate(name), 0.8), head_of()
    for step in range(150):
        controller.update(head, drifting(step), drifting(step + 1, seed=step), step / 50)
    x = head.shifted(drifting(150, 4000))
    kept = x[x > build_gate(name).closes_at]
    assert kept.mean().item() == pytest.approx(1, abs=0.35)
    assert float(head.scale) > 1.5


def test_a_mean_one_gate_is_not_rescaled() -> None:
    controller, head = SparsityController.for_gate(build_gate("normalised"), 0.8), head_of()
    controller.update(head, torch.linspace(0.9, 1.1, 50), torch.linspace(0.9, 1.1, 50), 1.0)
    assert float(head.scale) == 1.0
    assert 0.9 < float(head.offset) < 1.1


@given(
    values=st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.0, 1.1, 1.6]), min_size=1, max_size=60), share=st.floats(0, 0.95)
)
@settings(max_examples=200, deadline=None)
def test_the_threshold_comes_as_near_as_equal_numbers_allow(values: list[float], share: float) -> None:
    """Equal numbers are all on one side of it, and never are all closed."""
    ordered = torch.tensor(values, dtype=torch.float64).sort().values
    threshold, spread = threshold_for(ordered, share)
    closed = float((ordered <= threshold).double().mean())
    possible = [0.0, *(float((ordered <= value).double().mean()) for value in values)]
    may_close_all = share > 1 - 1 / len(values) and values.count(max(values)) == 1
    nearest = min(abs(part - share) for part in possible if part < 1 or may_close_all)
    assert abs(closed - share) <= nearest + max(0.05, 1 / len(values)) + 1e-9
    assert (spread is None) == (closed == 1.0)
    assert spread is None or spread > 0


def test_equal_numbers_do_not_collapse() -> None:
    for name in CONTROLLED:
        controller, head = SparsityController.for_gate(build_gate(name), 0.8), head_of()
        for step in range(30):
            controller.update(head, torch.full((200,), 0.7), torch.full((200,), 0.7), step / 10)
        assert zeros(name, head, torch.full((200,), 0.7)) == 0
        assert torch.isfinite(head.offset)
        assert torch.isfinite(head.scale)


def test_the_ramp_begins_where_the_mask_is() -> None:
    head = head_of()
    controller = SparsityController.for_gate(build_gate("relu"), 0.8)
    values = torch.linspace(-1, 3, 1000)  # a quarter is shut at the start
    assert controller.update(head, values, values, 0.0) == pytest.approx(0.25, abs=0.002)
    assert float(head.start_sparsity) == pytest.approx(0.25, abs=0.002)
    assert zeros("relu", head, values) == pytest.approx(0.25, abs=0.002)
    assert controller.update(head, values, values, 0.5) == pytest.approx(0.525, abs=0.002)
    assert controller.update(head, values, values + 3, 0.5) == pytest.approx(0.525, abs=0.002)
    assert zeros("relu", head, values + 3) == pytest.approx(0.525, abs=0.01)


def test_no_tokens_change_nothing() -> None:
    head = head_of()
    SparsityController.for_gate(build_gate("relu"), 0.8).update(head, torch.zeros(0), torch.zeros(0), 0.5)
    assert [float(b) for b in (head.offset, head.scale, head.start_sparsity)] == [0, 1, -1]


def test_small_batches_are_averaged_over_steps() -> None:
    """Thirty tokens a step: the quantile of one batch alone would be off by 7 points (one standard error)."""
    head, controller = head_of(), SparsityController.for_gate(build_gate("normalised"), 0.6)
    found = []
    for step in range(300):
        controller.update(head, drifting(step, 30), drifting(step + 1, 30, seed=step), 1.0)
        if step > 50:
            found.append(zeros("normalised", head, drifting(step + 1, 4000)))
    assert torch.tensor(found).std() < 0.04


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sigmoid", "it has no exact zeros"),
        ("topk", "set that to 1 − the sparsity"),
        ("sparsemax", "mask_gate_temperature"),
        ("entmax", "mask_gate_temperature"),
    ],
)
def test_gates_that_no_offset_can_set_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"mask_gate='{name}': .*{message}"):
        SparsityController.for_gate(build_gate(name), 0.5)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.69])
def test_the_threshold_lies_above_tied_numbers_that_it_closes(share: float) -> None:
    """Where ReLU layers are shut for most tokens their numbers are exactly equal; on them, a threshold that comes from
    below would leave all of them open for long."""
    ordered = torch.cat([torch.zeros(70), torch.linspace(0.01, 1, 30)]).double()
    threshold, spread = threshold_for(ordered, share)
    assert 0 < threshold < 0.01
    assert spread is not None


def test_tied_numbers_are_closed_from_below() -> None:
    controller, head = SparsityController(0.6, 0.0, True), head_of()
    head.start_sparsity.fill_(0.0)
    head.offset.fill_(-0.5)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(600, generator=generator) + 0.01
    values[torch.rand(600, generator=generator) < 0.7] = 0.0
    for _ in range(12):
        controller.update(head, values, values, 1.0)
    assert zeros("relu", head, values) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("values", [[0.0] * 512, [0.5, 1.0, 1.0], [*(i / 100 for i in range(88)), *[2.0] * 12]])
def test_equal_numbers_at_the_top_are_never_closed(share: float, values: list[float]) -> None:
    """They stand for many tokens: a mask that is zero everywhere would not learn any more."""
    ordered = torch.tensor(values, dtype=torch.float64)
    threshold, spread = threshold_for(ordered, share)
    assert (ordered > threshold).any()
    assert spread is not None
