"""FSDP2: a policy and a reference that are split over processes, and a mask head that is not.

accelerate shards the policy when training starts, together with its optimiser. Three things are ours:

- The mask head is no part of what is sharded. In a shard it would be computed in the policy's reduced precision, and its
  few thousand numbers are not worth a gathering. It joins the policy once that is sharded, whole and in float32 on every
  process, and its gradient is averaged over the processes after the last micro-batch of a step.
- The scorer runs inside the forward of the policy's LM head. FSDP2 has a unit's parameters whole only within its own
  forward, and only there a gradient of the whole weight finds its way back into the shards.
- The reference is sharded by block as the policy is. TRL makes one unit of it, which every forward gathers as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


def fsdp_version(accelerator: Any) -> int | None:
    """Version of FSDP that the run is configured with, or None without FSDP."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return None if plugin is None else int(plugin.fsdp_version)


def is_fsdp2(accelerator: Any) -> bool:
    """Whether the run shards by FSDP2."""
    return fsdp_version(accelerator) == 2


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 already has a model in its hands."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def refuse_before_sharding(model: nn.Module, accelerator: Any) -> None:
    """Refuse to run a policy that FSDP2 is to shard and has not yet: accelerate shards it together with its optimiser."""
    if is_fsdp2(accelerator) and not is_sharded(model):
        raise RuntimeError(
            "Under FSDP2 a policy can be evaluated and scored once training has begun: accelerate shards it with its "
            "optimiser. For numbers before the first step set eval_on_start=True, or evaluate without FSDP."
        )


def saves_shards(accelerator: Any) -> bool:
    """Whether Trainer's checkpoints keep weights in shards, and its ``save_model`` nothing (SHARDED_STATE_DICT)."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type)


def keep_float32_results(accelerator: Any) -> None:
    """Under mixed precision: blocks compute in half precision, gradients are summed over processes in float32.

    accelerate's own policy sums them in half precision and rounds what the model's forward returns, here the loss, to it.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = MixedPrecisionPolicy(policy.param_dtype, reduce_dtype=torch.float32)


def shard_reference(model: nn.Module, accelerator: Any) -> nn.Module:
    """Shard the frozen reference by block, as accelerate shards the policy; in evaluation mode.

    Weights that were loaded on the first process only (``fsdp_cpu_ram_efficient_loading``) reach the others here.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    keep_float32_results(accelerator)
    model.requires_grad_(False)  # what is trained would be cast to float32
    plugin = accelerator.state.fsdp_plugin
    found = {name: getattr(plugin, name) for name in ("auto_wrap_policy", "transformer_cls_names_to_wrap")}
    sharded: nn.Module = fsdp2_prepare_model(accelerator, model)
    for name, value in found.items():  # it notes this model's kind of block there, and the policy may have another
        setattr(plugin, name, value)
    return sharded.eval()


def within_head(model: Any, run: Callable[[], Tensor]) -> Tensor:
    """Run ``run`` where the weights of a causal LM's head are whole: inside the head's own forward where FSDP2 shards it.

    Args:
        model: the causal LM, inside its own forward.
        run: reads the head's weights; its result carries their gradient.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, FSDPModule):  # a part of the model's own unit, or not sharded
        return run()
    with _forward_of(head, lambda *_: run()):  # type: ignore[arg-type]
        result: Tensor = head()  # type: ignore[operator]
    return result


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Any:
    """A module with another forward; its hooks are its own."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], accelerator: Any) -> None:
    """Average the gradients of replicated parameters over all processes, in one message. A collective call.

    A process without a gradient (an empty batch) counts with zeros; where no process has one there is none afterwards.
    """
    if accelerator.num_processes == 1 or not parameters:
        return
    device = accelerator.device
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    sums = torch.cat([*(gradient.reshape(-1).to(device, torch.float32) for gradient in own), there])
    dist.all_reduce(sums)
    *flat, there = sums.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, total, count in zip(parameters, flat, there.tolist(), strict=True):
        if count:
            mean = total / accelerator.num_processes
            parameter.grad = mean.view_as(parameter).to(parameter)
