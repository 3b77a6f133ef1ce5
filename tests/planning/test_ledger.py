"""The ledger counts what is alive, and no more."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsepo.planning.ledger import ALIGNMENT, Ledger


@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_live_bytes_and_peak_of_any_sequence(steps: list[tuple[int, bool]]) -> None:
    """Tensors are made, and where told the oldest is dropped: sums and the largest sum are those of arithmetic."""
    alive: list[int] = []
    expected_peak = 0
    with FakeTensorMode(), Ledger() as ledger:
        held = []
        for size, drop in steps:
            held.append(torch.empty(size))
            alive.append(-(-4 * size // ALIGNMENT) * ALIGNMENT)
            expected_peak = max(expected_peak, sum(alive))
            if drop:
                held.pop(0)
                alive.pop(0)
            assert ledger.live["activations"] == sum(alive)
    assert ledger.highest == expected_peak == sum(ledger.peak.values())


def test_views_cost_nothing_and_parts_are_kept_apart() -> None:
    with FakeTensorMode(), Ledger({"b": 0.5}) as ledger:
        with ledger.part("a"):
            x = torch.empty(1024)
        with ledger.part("b"):
            y = torch.empty(2048)
        z = x.view(32, 32)[:4]
        assert dict(ledger.live) == {"a": 4096, "b": 8192}
        assert ledger.total == 4096 + 0.5 * 8192
        ledger.enter(y, "a")
        assert dict(ledger.live) == {"a": 4096 + 8192, "b": 0}
        del x
        assert ledger.live["a"] == 4096 + 8192  # the view holds it
        del z
        assert ledger.live["a"] == 8192


def test_products_are_counted_as_twice_their_sizes() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        a, b = torch.empty(8, 16, requires_grad=True), torch.empty(16, 4)
        ledger.phase("forward")
        out = a @ b
        ledger.phase("backward")
        out.sum().backward()
    assert ledger.flops["forward"] == 2 * 8 * 16 * 4
    assert ledger.flops["backward"] == 2 * 8 * 16 * 4  # b wants no gradient
    assert ledger.traffic["forward"] == 0
    assert ledger.traffic["backward"] > 0
