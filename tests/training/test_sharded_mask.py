"""The pieces that hold FSDP2 and the mask head together, on gloo with one process; test_distributed.py has the runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sparsepo.training.sharding import (
    average_gradients,
    keep_float32_results,
    refuse_before_sharding,
    within_head,
)
from sparsepo.training.trl_bridge import head_source, lm_head_of
from tests.support import tiny_model


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_the_head_is_whole_within_its_unit_and_its_gradient_comes_back_in_shards(mesh: DeviceMesh) -> None:
    """A head that is a unit of its own, which the model's forward would never gather."""
    model, plain = (tiny_model("llama", tie_word_embeddings=False) for _ in range(2))
    fully_shard(model.lm_head, mesh=mesh)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="LM head is in shards where it is read"):
        lm_head_of(model)
    seen = []

    def run() -> torch.Tensor:
        weight = lm_head_of(model).weight
        seen.append(type(weight))
        return (hidden @ weight.T).square().sum()

    within_head(model, run).backward()
    (hidden @ plain.lm_head.weight.T).square().sum().backward()
    assert not issubclass(seen[0], DTensor)
    gradient = model.lm_head.weight.grad
    assert isinstance(gradient, DTensor)
    assert torch.allclose(gradient.full_tensor(), plain.lm_head.weight.grad, rtol=1e-5)
    assert "forward" not in model.lm_head.__dict__
    with torch.no_grad():  # a reference: gathered anew, nothing to lose
        assert torch.equal(head_source(model)().weight, plain.lm_head.weight)


def test_a_model_without_a_unit_for_its_head_is_run_as_it_is() -> None:
    model = tiny_model("llama")
    assert within_head(model, lambda: torch.ones(()) * 2) == 2


def test_a_failing_scorer_leaves_the_head_its_forward(mesh: DeviceMesh) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    fully_shard(model.lm_head, mesh=mesh)

    def fails() -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        within_head(model, fails)
    assert "forward" not in model.lm_head.__dict__


def test_gradients_are_averaged_and_where_nobody_has_one_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, the other one played: it has a gradient of 3 for the first parameter, none for the others."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[1].grad = torch.tensor([2.0, 4.0])
    monkeypatch.setattr(dist, "all_reduce", lambda t: t.add_(torch.tensor([3.0, 3.0, 0, 0, 0, 0, 1, 0, 0])))
    average_gradients(parameters, SimpleNamespace(num_processes=2, device=torch.device("cpu")))
    first, second, third = (parameter.grad for parameter in parameters)
    assert torch.equal(first, torch.tensor([1.5, 1.5]))
    assert torch.equal(second, torch.tensor([1.0, 2.0]))
    assert third is None


def test_mixed_precision_leaves_losses_and_reductions_in_float32() -> None:
    plugin = SimpleNamespace(fsdp_version=2)
    half = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)  # what accelerate sets
    plugin.mixed_precision_policy = half
    keep_float32_results(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    keep_float32_results(SimpleNamespace(state=SimpleNamespace()))  # a run without FSDP


def test_evaluation_before_a_policy_is_sharded_is_refused(mesh: DeviceMesh) -> None:
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2)))
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match=r"once training has begun.*eval_on_start"):
        refuse_before_sharding(model, accelerator)
    refuse_before_sharding(model, SimpleNamespace(state=SimpleNamespace()))
    fully_shard(model, mesh=mesh)
    refuse_before_sharding(model, accelerator)
