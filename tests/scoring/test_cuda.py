"""What only a GPU can show: half-precision products into float32, and mixed precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives import get_objective
from sparsepo.scoring import DenseScorer, FusedScorer
from sparsepo.scoring.products import is_native, project_into, times_weight
from sparsepo.scoring.triton_rows import TritonRows, row_backend, triton_is_available

from .test_fused import assert_same, problem

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LENGTHS = [5, 2, 7, 1]


def outcome(scorer, objective, dtype=torch.float32, frozen=False, **more):
    """Losses and gradients of tests/scoring/test_fused.py's problem on the GPU."""
    leaves, inputs = problem(3, LENGTHS, dtype=dtype, **more)
    leaves = {
        name: leaf.detach().cuda().requires_grad_(not (frozen and name == "weight")) for name, leaf in leaves.items()
    }

    def moved(value):
        return value.cuda() if isinstance(value, torch.Tensor) else value

    fields = {f.name: moved(getattr(inputs, f.name)) for f in dataclasses.fields(inputs)}
    reference = inputs.reference_head
    reference = dataclasses.replace(reference, weight=moved(reference.weight), bias=moved(reference.bias))
    fields |= {
        "policy_hidden": leaves["hidden"],
        "policy_head": dataclasses.replace(inputs.policy_head, weight=leaves["weight"], bias=leaves.get("bias")),
        "reference_head": reference,
        "masks": TokenMasks(leaves["reward"], leaves["kl"]),
    }
    output = scorer(type(inputs)(**fields), objective, True)
    output.loss.backward()
    return output, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_products_have_float32_results(dtype):
    g = torch.Generator("cuda").manual_seed(0)
    hidden, weight = (torch.randn(n, 256, generator=g, device="cuda").to(dtype) for n in (7, 1001))
    assert is_native(weight)
    out = torch.empty(7, 1001, device="cuda")
    project_into(out, hidden, weight)
    exact = hidden.double() @ weight.double().T
    assert (out - exact).abs().max() < 1e-4 * exact.abs().max()
    back = times_weight(out, weight)
    assert (back - out.double() @ weight.double()).norm() < 5e-3 * back.norm()


@pytest.mark.parametrize("name", ["sparsepo", "tdpo2", "dpop", "simpo"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-5), (torch.bfloat16, 2e-2)])
def test_fused_equals_dense(name, frozen, dtype, rtol):
    objective = get_objective(name)
    expected = outcome(DenseScorer(), objective, dtype, frozen)
    for budget in (None, 1e-3):  # all pairs in one group; a pair in two passes
        assert_same(outcome(FusedScorer(budget), objective, dtype, frozen), expected, rtol)


@pytest.mark.parametrize("more", [{"bias": True}, {"scale": 0.5, "softcap": 5.0}])
def test_bias_scale_and_cap(more):
    objective = get_objective("sparsepo", kl_anchor=0.1)
    assert_same(outcome(FusedScorer(), objective, **more), outcome(DenseScorer(), objective, **more), 3e-5)


@pytest.mark.skipif(not triton_is_available(), reason="triton is not installed")
def test_rows_go_through_triton_whatever_the_precision():
    with torch.autocast("cuda", dtype=torch.bfloat16):  # as in a run whose first step asks
        assert row_backend("cuda") is TritonRows
    assert row_backend("cuda:0") is TritonRows


def test_mixed_precision_multiplies_in_half_and_keeps_float32_rows():
    objective = get_objective("sparsepo", beta=0.5)
    plain = outcome(FusedScorer(), objective)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        mixed = outcome(FusedScorer(), objective)
    assert mixed[1]["weight"].dtype == torch.float32
    assert_same(mixed, plain, 5e-2)
    assert (mixed[1]["weight"] != plain[1]["weight"]).any()
