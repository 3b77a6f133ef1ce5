"""The one file that touches TRL's private names, and the transformers names that only it should know.

Everything else in the package calls what stands here. The TRL version is pinned in pyproject.toml; on another one
:func:`sparsepo.compatibility.check_versions` has refused with one message before this file is imported.
"""

from __future__ import annotations

import gc
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import trl.trainer.dpo_trainer as _dpo_module
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer
from trl.data_utils import common_prefix_length, is_conversational
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import maybe_gather_lm_head_ctx, use_adapter

from sparsepo.scoring.head import LMHead

from .sharding import shard_reference

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DataCollatorForPreference",
    "SyncRefModelCallback",
    "bf16_is_supported",
    "common_prefix_length",
    "construction",
    "gathered_heads",
    "head_source",
    "is_conversational",
    "lm_head_of",
    "load_balancing_loss",
    "reference_adapter",
    "release_reference",
    "release_wrapper",
    "stages_of_fsdp",
    "unpickled_hub_push",
]


def bf16_is_supported(use_cpu: bool = False) -> bool:
    """Whether the device that the run will use has bfloat16 arithmetic worth using (CPUs: no)."""
    from transformers.utils import is_torch_bf16_gpu_available

    return not use_cpu and bool(is_torch_bf16_gpu_available())


@contextmanager
def construction(load_reference: Callable[[], bool], model_is_path: bool, collator: type) -> Iterator[None]:
    """Around ``DPOTrainer.__init__``: no fused head is patched into the models, no unneeded reference is loaded, FSDP2
    shards a reference by block, and the default collator is ours.

    ``load_reference`` is asked where the reference would be loaded: policy, accelerator and prepared data sets are there.

    TRL's fused head closes over the model's bound forward, so that a deep copy of the model answers with the original's
    weights; we call backbone and head ourselves and leave ``forward`` alone.
    """
    load = _dpo_module.create_model_from_path
    calls = 0

    def load_policy_only(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        is_reference = calls > (1 if model_is_path else 0)
        return None if is_reference and not load_reference() else load(*args, **kwargs)

    with (
        patch.object(_dpo_module, "add_fused_lm_head", lambda *args, **kwargs: None),
        patch.object(_dpo_module, "create_model_from_path", load_policy_only),
        patch.object(_dpo_module, "DataCollatorForPreference", collator),
        patch.object(_dpo_module, "prepare_fsdp", shard_reference),
    ):
        yield


@contextmanager
def reference_adapter(model: Any) -> Iterator[None]:
    """A PEFT policy seen as its reference: adapters disabled, or TRL's frozen copy named ``ref`` active."""
    with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
        yield


def lm_head_of(model: Any) -> LMHead:
    """The head of a causal LM with the scale and cap of its logits, read as TRL's fused head reads them."""
    return head_source(model)()


def head_source(model: Any) -> Callable[[], LMHead]:
    """The head that a causal LM has now, read when the result is called: FSDP2 frees whole weights after a forward."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    # PEFT's wrappers show the weight of whichever adapter is active
    owner = next((m for m in head.modules() if m._parameters.get("weight") is head.weight), head)

    def read() -> LMHead:
        weight, bias = _whole(owner.weight), _whole(getattr(owner, "bias", None))
        assert weight is not None
        return LMHead(weight, bias, logit_scale(config), getattr(config, "final_logit_softcapping", None))

    return read


def _whole(parameter: Tensor | None) -> Tensor | None:
    """A parameter's full value, gathered where FSDP2 has it in shards (DTensor). A collective call there."""
    if parameter is None or not hasattr(parameter, "full_tensor"):
        return parameter
    if parameter.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "The policy's LM head is in shards where it is read: gradients would not be summed over processes. Read it "
            "inside the forward of its FSDP unit (sharding.within_head)."
        )
    whole: Tensor = parameter.full_tensor()
    return whole


def gathered_heads(*models: Any) -> AbstractContextManager[Any]:
    """Around everything that reads the heads' weights: under ZeRO-3 they are whole in here and nowhere else."""
    parameters: list[Any] = []
    for model in models:
        head = model.get_output_embeddings()
        parameters += [head.weight, getattr(head, "bias", None)]
    context: AbstractContextManager[Any] = maybe_gather_lm_head_ctx(*parameters)
    return context


def logit_scale(config: Any) -> float:
    """The factor on the logits, under the names that architectures give it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def load_balancing_loss(model: Any, router_logits: Any, attention_mask: Tensor) -> Tensor:
    """The auxiliary loss of a mixture of experts, as TRL's fused head computes it."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    return load_balancing_loss_func(router_logits, config.num_experts, config.num_experts_per_tok, attention_mask)


@contextmanager
def unpickled_hub_push() -> Iterator[None]:
    """Around Trainer's push from a checkpoint: the pickled arguments get a name that the upload leaves out."""
    import transformers.trainer as trainer_module

    with patch.object(trainer_module, "TRAINING_ARGS_NAME", "_training_args.bin"):
        yield


@contextmanager
def stages_of_fsdp(stage: Callable[[Callable[[], Any]], None]) -> Iterator[None]:
    """Around Trainer's saving of sharded models: ``stage`` runs the model's part before the optimiser's begins."""
    import transformers.trainer as trainer_module

    save = getattr(trainer_module, "save_fsdp_model", None)  # accelerate's
    if save is None:
        yield
        return

    def in_a_stage(*args: Any, **kwargs: Any) -> None:
        stage(lambda: save(*args, **kwargs))

    with patch.object(trainer_module, "save_fsdp_model", in_a_stage):
        yield


class _PolicyWithoutMask:
    """A model as its parameters outside the mask head: TRL's synchronisation pairs them with the reference's."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for name, p in self.model.named_parameters() if "sparsepo_mask." not in name)


class MaskAwareReferenceSync(SyncRefModelCallback):
    """TR-DPO's moving reference for a policy that carries a mask head."""

    @staticmethod
    def sync_target_model(model: nn.Module, target_model: nn.Module, alpha: float) -> None:
        SyncRefModelCallback.sync_target_model(_PolicyWithoutMask(model), target_model, alpha)


def replace_reference_sync(trainer: Any) -> None:
    """Swap TRL's callback of ``sync_ref_model`` for one that leaves the mask head out."""
    trainer.remove_callback(SyncRefModelCallback)
    trainer.add_callback(MaskAwareReferenceSync(ref_model=trainer.ref_model, accelerator=trainer.accelerator))


def autocast_of(accelerator: Any) -> Any:
    """The run's mixed-precision context."""
    return accelerator.autocast() if accelerator is not None else nullcontext()


StepFunction = Callable[[nn.Module], Any]
_FORWARD_MARK = "_sparsepo_step_forward"


def install_step_forward(model: nn.Module) -> None:
    """Let ``model(sparsepo_step=f)`` run ``f(model)`` inside the module's forward.

    Wrappers (DDP, FSDP, DeepSpeed, PEFT) do their work around ``forward``: hooks, gradient reduction, gathering of
    parameters. Everything else goes to the class's own forward. Idempotent; undone by :func:`remove_step_forward`.
    """
    if model.__dict__.get(_FORWARD_MARK):
        return
    hooked = model.__dict__.get("forward")  # accelerate's hooks of a model split over devices

    def forward(self: nn.Module, *args: Any, sparsepo_step: StepFunction | None = None, **kwargs: Any) -> Any:
        if sparsepo_step is not None:
            return sparsepo_step(self)
        return hooked(*args, **kwargs) if hooked is not None else type(self).forward(self, *args, **kwargs)

    # generate() validates its arguments against this signature. No functools.wraps: accelerate unwraps __wrapped__.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    model.__dict__[_FORWARD_MARK] = True
    model.__dict__["_sparsepo_hooked_forward"] = hooked


def remove_step_forward(model: nn.Module) -> None:
    """Give the model its own forward back (and drop accelerate's mixed-precision wrapper around ours)."""
    if not model.__dict__.pop(_FORWARD_MARK, None):
        return
    model.__dict__.pop("forward", None)
    model.__dict__.pop("_original_forward", None)
    hooked = model.__dict__.pop("_sparsepo_hooked_forward", None)
    if hooked is not None:
        model.forward = hooked


def release_wrapper(trainer: Any) -> None:
    """Free a trainer's DDP wrapper while the process group still lives. Call it before ``trainer.end()``.

    Freed afterwards, the wrapper's reducer holds the last reference to the group and destroys it with Python's lock held,
    which gloo's threads may be waiting for: a process that has finished then never exits.
    """
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    gc.collect()


def release_reference(trainer: Any) -> None:
    """Free a trainer's reference model, which accelerate holds as well."""
    model, trainer.ref_model = trainer.ref_model, None
    held = trainer.accelerator._models
    held[:] = [other for other in held if other is not model]
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def versions() -> dict[str, str]:
    """Versions of the libraries a run depends on."""
    import importlib.metadata

    names = ("sparsepo", "trl", "transformers", "torch", "datasets", "peft", "accelerate")
    return {name: importlib.metadata.version(name) for name in names}
