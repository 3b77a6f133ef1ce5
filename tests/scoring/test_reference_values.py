"""What a cache keeps of the reference equals the formulas on whole rows of logits."""

from __future__ import annotations

import pytest
import torch

from sparsepo.scoring import LMHead, reference_values
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
