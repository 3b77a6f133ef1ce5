"""What a cache keeps of the reference equals the formulas on whole rows of logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsepo.objectives import get_objective
from sparsepo.scoring import CachedReference, FusedScorer, LMHead, ScorerInputs, products, reference_values
from sparsepo.scoring.products import times_weight


def case(dtype: torch.dtype, **settings: float) -> tuple[torch.Tensor, LMHead, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(301, 16, generator=generator).to(dtype)
    bias = torch.randn(301, generator=generator).to(dtype)
    hidden = torch.randn(300, 16, generator=generator).to(dtype)  # several tiles of rows
    return hidden, LMHead(weight, bias, **settings), torch.randint(301, (300,), generator=generator)


@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"softcap": 3.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_those_of_the_whole_rows(dtype: torch.dtype, settings: dict[str, float]) -> None:
    hidden, head, targets = case(dtype, **settings)
    found = reference_values(hidden, head, targets, with_expectation=True)
    logits = LMHead(head.weight.double(), head.bias.double(), **settings).logits(hidden.double())
    wide = torch.promote_types(dtype, torch.float32)
    assert found.logps.dtype == found.log_normaliser.dtype == found.expected_weight.dtype == wide
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if wide == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.logps.double(), expected, **tolerance)
    torch.testing.assert_close(found.log_normaliser.double(), logits.logsumexp(-1), **tolerance)
    torch.testing.assert_close(found.expected_weight.double(), logits.softmax(-1) @ head.weight.double(), **tolerance)


def test_no_expectation_unless_asked_for() -> None:
    hidden, head, targets = case(torch.float32)
    assert reference_values(hidden, head, targets, with_expectation=False).expected_weight is None
    assert len(reference_values(hidden[:0], head, targets[:0], with_expectation=True).logps) == 0


def emulate_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that multiplies bfloat16 into float32, and mixed precision that asks it to."""
    mm = torch.mm

    def native(
        a: torch.Tensor, b: torch.Tensor, out_dtype: Any = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        product = mm(a, b) if out_dtype is None else mm(a.to(out_dtype), b.to(out_dtype))
        return product if out is None else out.copy_(product)

    monkeypatch.setattr(torch, "mm", native)
    monkeypatch.setattr(products, "_multiplies_natively", lambda device, dtype: dtype == torch.bfloat16)
    monkeypatch.setattr("sparsepo.scoring.head.autocast_operand", lambda weight: weight.detach().bfloat16())


@pytest.mark.parametrize("rounds_alike", [True, False])
def test_under_mixed_precision_values_go_with_the_scorers_products(
    monkeypatch: pytest.MonkeyPatch, rounds_alike: bool
) -> None:
    """Where the scorer rounds states and head before multiplying, the cached values do too: the KL keeps its digits."""
    hidden, head, targets = case(torch.float32)
    emulate_native(monkeypatch)
    moved = hidden + 0.01 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    shape = {"targets": targets.view(4, -1), "response_mask": torch.ones(4, 75, dtype=torch.bool), "policy_head": head}
    shape |= {"policy_hidden": moved.view(4, 75, -1)}
    objective = get_objective("tdpo1", beta=0.1)
    scorer = FusedScorer()
    expected = scorer(
        ScorerInputs(**shape, reference_hidden=hidden.view(4, 75, -1), reference_head=head), objective, True
    )
    if not rounds_alike:
        monkeypatch.setattr("sparsepo.scoring.walks.hidden_operand", lambda hidden, weight: hidden)
    values = reference_values(hidden, head, targets, with_expectation=True)
    cached = CachedReference(
        values.logps.view(4, -1),
        values.log_normaliser.view(4, -1),
        hidden.view(4, 75, -1),
        values.expected_weight.view(4, 75, -1),
    )
    found = scorer(ScorerInputs(**shape, cached=cached), objective, True)
    worst = max(
        float((getattr(found.scores, side).kl - getattr(expected.scores, side).kl).abs().max())
        for side in ("chosen", "rejected")
    )
    assert (worst < 1e-5) == rounds_alike, worst
    assert float(expected.scores.chosen.kl.max()) > 1e-4


def test_exact_products_use_no_half_precision_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device multiplies bfloat16 natively, rows of probabilities would lose digits that the KL needs."""
    hidden, head, _ = case(torch.bfloat16)
    rows = head.logits(hidden).softmax(-1)
    expected = rows.double() @ head.weight.double()

    def half(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr("sparsepo.scoring.products.is_native", lambda weight: True)
    monkeypatch.setattr(torch, "mm", half)
    errors = [(times_weight(rows, head.weight, exact=exact).double() - expected).abs().max() for exact in (True, False)]
    assert errors[0] < 5e-6
    assert errors[1] > 50 * errors[0]
