"""The Triton kernels on rows equal the dense formulas in float64: on CUDA where there is one, else interpreted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo.objectives import get_objective
from sparsepo.scoring import DenseScorer, FusedScorer, LMHead, token_kl, token_logps
from sparsepo.scoring.rows import RowStatistics, TorchRows
from sparsepo.scoring.tokens import token_statistics
from sparsepo.scoring.triton_rows import (
    TritonRows,
    row_backend,
    triton_is_available,
    triton_is_interpreted,
    triton_logit_gradient,
    triton_row_statistics,
)

from .test_fused import assert_same, outcome, problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    not triton_is_available() or not (DEVICE == "cuda" or triton_is_interpreted()),
    reason="triton is not installed, or there is neither CUDA nor TRITON_INTERPRET=1",
)
BLOCK = 64  # small, so that a row spans several


def rows(seed, count, vocabulary, spread=3.0, apart=0.5, dtype=torch.float32, pad=0):
    """Logits of policy and reference (with ``pad`` unused columns between rows), targets, g and c."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    policy = spread * draw(count, vocabulary + pad)
    reference = policy + apart * draw(count, vocabulary + pad)
    targets = torch.randint(0, vocabulary, (count,), generator=g)
    tensors = [t.to(DEVICE, dtype) for t in (policy, reference, draw(count), draw(count))]
    return tensors[0][:, :vocabulary], tensors[1][:, :vocabulary], targets.to(DEVICE), tensors[2], tensors[3]


def autograd_gradient(policy, reference, targets, g, c, scale=1.0, softcap=None):
    """The gradient in float64 with respect to x of z = cap(scale · x), from the dense formulas; ``policy`` holds z."""
    z = policy.double()
    x = ((z if softcap is None else softcap * torch.atanh(z / softcap)) / scale).requires_grad_()
    logits = scale * x
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    total = (g.double() * token_logps(logits, targets)).sum()
    if reference is not None:
        total = total + (c.double() * token_kl(reference.double(), logits)).sum()
    return torch.autograd.grad(total, x)[0]


shapes = st.tuples(st.integers(0, 99), st.integers(1, 5), st.integers(1, 200))


@needs_triton
@settings(max_examples=25)
@given(
    shape=shapes,
    spread=st.sampled_from([0.1, 3.0, 1e4]),
    apart=st.sampled_from([0.0, 0.02, 1.0, 1e4]),
    pad=st.sampled_from([0, 5]),
)
def test_statistics_equal_the_dense_formulas(shape, spread, apart, pad):
    policy, reference, targets, _, _ = rows(*shape, spread, apart, pad=pad)
    before = policy.clone(), reference.clone()
    found = triton_row_statistics(policy, reference, targets, True, True, block=BLOCK)
    z, w = policy.double(), reference.double()
    size = max(1.0, float(z.abs().max()), float(w.abs().max()))
    expected = {
        "logps": token_logps(z, targets),
        "log_normaliser": z.logsumexp(-1),
        "ref_logps": token_logps(w, targets),
        "ref_log_normaliser": w.logsumexp(-1),
        "kl": token_kl(w, z),
        **token_statistics(z, targets),
    }
    for name, values in expected.items():
        assert torch.allclose(getattr(found, name).double(), values.double(), rtol=2e-6, atol=1e-6 * size), name
    whole = found.log_normaliser.double() + found.rest.double()
    assert torch.allclose(whole, z.logsumexp(-1), rtol=0, atol=2e-6)  # the rest restores what 1e4 rounds away
    assert torch.equal(policy, before[0])
    assert torch.equal(reference, before[1])


@needs_triton
@pytest.mark.parametrize("apart", [0.015, 0.05, 0.15])
def test_a_small_kl_over_a_large_vocabulary_keeps_its_digits(apart):
    policy, reference, targets, _, _ = rows(3, 2, 50257, apart=apart)
    expected = token_kl(reference.double(), policy.double())
    assert 5e-5 < float(expected.max()) < 2e-2
    kl = triton_row_statistics(policy, reference, targets, True, False).kl
    assert float((kl.double() - expected).abs().max()) < 5e-7


@needs_triton
@given(shape=shapes)
@settings(max_examples=10)
def test_the_kl_of_equal_and_of_shifted_models_is_zero(shape):
    policy, _, targets, _, _ = rows(*shape)
    for shift, error in ((0.0, 1e-7), (64.0, 8e-6)):  # an ulp of 64 is 8e-6
        kl = triton_row_statistics(policy, policy + shift, targets, True, False, block=BLOCK).kl
        assert float(kl.abs().max()) <= error


@needs_triton
@given(
    shape=shapes,
    scale=st.sampled_from([1.0, 0.125]),
    softcap=st.sampled_from([None, 30.0]),
    has_reference=st.booleans(),
    out=st.sampled_from([None, torch.float32, torch.bfloat16, torch.float16]),
    pad=st.sampled_from([0, 3]),
)
@settings(max_examples=30)
def test_the_gradient_is_autograds(shape, scale, softcap, has_reference, out, pad):
    policy, reference, targets, g, c = rows(*shape, pad=pad)
    other = reference if has_reference else None
    c = c if has_reference else torch.zeros_like(c)
    expected = autograd_gradient(policy, other, targets, g, c, scale, softcap)
    statistics = triton_row_statistics(policy, other, targets, has_reference, False, block=BLOCK)
    target = None if out is None else torch.empty(policy.shape, dtype=out, device=DEVICE)
    found = triton_logit_gradient(policy, other, statistics, targets, g, c, scale, softcap, target, block=BLOCK)
    assert found is (policy if out is None else target)
    tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(found.dtype, 2e-6)
    size = float(expected.abs().max())
    assert torch.allclose(found.double(), expected, rtol=2 * tolerance, atol=tolerance * max(size, 1e-3))


@needs_triton
def test_the_gradient_of_large_logits_keeps_its_digits():
    policy, reference, targets, g, c = rows(0, 4, 150, spread=1.0)
    policy, reference = policy + 1e4, reference + 1e4  # an ulp of these is 1e-3
    statistics = triton_row_statistics(policy, reference, targets, True, False, block=BLOCK)
    expected = autograd_gradient(policy, reference, targets, g, c)
    found = triton_logit_gradient(policy, reference, statistics, targets, g, c)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)


@needs_triton
def test_float64_rows_stay_float64():
    policy, reference, targets, g, c = rows(1, 3, 130, dtype=torch.float64)
    expected = autograd_gradient(policy, reference, targets, g, c, 0.3, 20.0)
    statistics = triton_row_statistics(policy, reference, targets, True, True, block=BLOCK)
    assert torch.allclose(statistics.kl, token_kl(reference, policy), rtol=1e-10, atol=1e-13)
    assert torch.allclose(statistics.entropy, token_statistics(policy, targets)["entropy"], rtol=1e-10)
    found = triton_logit_gradient(policy, reference, statistics, targets, g, c, 0.3, 20.0, block=BLOCK)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)


@needs_triton
def test_of_equal_logits_the_lowest_index_is_the_top():
    policy = torch.tensor([[1.0, 5.0, 5.0, 0.0]] * 3, device=DEVICE)
    targets = torch.tensor([1, 2, 0], device=DEVICE)
    assert triton_row_statistics(policy, None, targets, False, True).is_top1.tolist() == [1.0, 0.0, 0.0]


@needs_triton
def test_both_backends_leave_the_same_after_each_step():
    policy, reference, targets, g, c = rows(5, 4, 90)
    head = LMHead(torch.zeros(90, 2, device=DEVICE), scale=0.5, softcap=25.0)
    results = []
    for backend in (TorchRows, TritonRows):
        gradient, z, w = policy.clone(), policy.clone(), reference.clone()
        found = backend.statistics(gradient, other := reference.clone(), targets, True, True)
        backend.gradient(gradient, other, found, targets, g, c, head)
        found = backend.statistics(z, w, targets, True, True)
        p, q = backend.probabilities(z, found), backend.reference_probabilities(w, found)
        results.append([p, q, gradient, found.logps, found.kl, found.entropy])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, atol=2e-6)


@needs_triton
def test_no_rows_and_statistics_without_their_rest():
    policy, reference, targets, g, c = rows(2, 3, 40)
    empty = triton_row_statistics(policy[:0], reference[:0], targets[:0], True, True)
    assert len(empty.logps) == len(empty.kl) == 0
    assert len(triton_logit_gradient(policy[:0], None, empty, targets[:0], g[:0], c[:0])) == 0
    full = triton_row_statistics(policy, reference, targets, True, False)
    plain = RowStatistics(full.logps, full.log_normaliser, full.ref_log_normaliser)
    out = [torch.empty_like(policy) for _ in range(2)]
    for statistics, target in zip((full, plain), out, strict=True):
        triton_logit_gradient(policy, reference, statistics, targets, g, c, out=target)
    assert torch.allclose(*out, atol=1e-5)


@needs_triton
def test_unsuitable_rows_are_refused():
    policy, reference, targets, g, c = rows(0, 2, 9)
    with pytest.raises(ValueError, match="float32"):
        triton_row_statistics(policy.bfloat16(), None, targets, False, False)
    with pytest.raises(ValueError, match="reference logits"):
        triton_row_statistics(policy, reference.double(), targets, True, False)
    with pytest.raises(ValueError, match="side by side"):
        triton_row_statistics(policy.T.contiguous().T, None, targets, False, False)
    alone = triton_row_statistics(policy, None, targets, False, False)
    with pytest.raises(ValueError, match="ref_log_normaliser"):
        triton_logit_gradient(policy, reference, alone, targets, g, c)


def test_the_environment_chooses_the_backend(monkeypatch):
    monkeypatch.delenv("SPARSEPO_ROWS", raising=False)
    assert row_backend("cpu") is TorchRows
    monkeypatch.setenv("SPARSEPO_ROWS", "torch")
    assert row_backend(DEVICE) is TorchRows
    monkeypatch.setenv("SPARSEPO_ROWS", "cuda")
    with pytest.raises(ValueError, match="SPARSEPO_ROWS='cuda'"):
        row_backend("cpu")


def test_triton_asked_for_where_it_cannot_run_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setenv("SPARSEPO_ROWS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("sparsepo.scoring.triton_rows._checked", {})
    with pytest.raises(ValueError, match=r"not installed|TRITON_INTERPRET=1"):
        row_backend("cpu")


@needs_triton
def test_triton_asked_for_is_tried_and_used(monkeypatch):
    monkeypatch.setenv("SPARSEPO_ROWS", "triton")
    assert row_backend(DEVICE) is TritonRows


on_the_cpu = pytest.mark.skipif(DEVICE == "cuda", reason="tests/scoring/test_cuda.py does the same on the GPU")


@needs_triton
@on_the_cpu
@pytest.mark.parametrize("name", ["sparsepo", "tdpo2", "dpop"])
@pytest.mark.parametrize("more", [{"bias": True}, {"scale": 0.5, "softcap": 5.0}])
def test_the_fused_scorer_with_triton_rows_equals_the_dense_one(monkeypatch, name, more):
    monkeypatch.setenv("SPARSEPO_ROWS", "triton")
    found, expected = (
        outcome(scorer, 3, [3, 1, 2, 4], get_objective(name), **more) for scorer in (FusedScorer(), DenseScorer())
    )
    assert_same(found, expected, 1e-5)


@needs_triton
@on_the_cpu
def test_a_frozen_head_with_triton_rows_gets_the_dense_gradient(monkeypatch):
    monkeypatch.setenv("SPARSEPO_ROWS", "triton")
    gradients = []
    for scorer in (FusedScorer(), DenseScorer()):
        leaves, inputs = problem(4, [3, 2])
        leaves["weight"].requires_grad_(False)
        scorer(inputs, get_objective("tdpo2"), True).loss.backward()
        gradients.append(leaves["hidden"].grad)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sparsepo.scoring import triton_kernels as kernels

flags = {"HAS_REFERENCE": True, "NEED_KL": True, "STATISTICS": True, "SCALE": 0.125, "SOFTCAP": 30.0, "BLOCK": 2048}
whole = {"policy_stride", "reference_stride", "out_stride", "stride", "rows", "vocabulary"}
for kernel in (kernels.row_statistics_kernel, kernels.logit_gradient_kernel, kernels.probabilities_kernel):
    signature = {n: "i32" if n in whole else "*i64" if n == "targets" else "*fp32" for n in kernel.arg_names}
    if kernel is kernels.logit_gradient_kernel:
        signature["out"] = "*bf16"
    elif kernel is kernels.probabilities_kernel:
        signature["rows"] = "*fp32"
    constants = {name: value for name, value in flags.items() if name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    for capability in (80, 90):
        built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        assert len(built.asm["cubin"]) > 1000
print("compiled")
"""


@pytest.mark.skipif(
    not triton_is_available() or DEVICE == "cuda", reason="triton is not installed, or CUDA tests cover it"
)
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
