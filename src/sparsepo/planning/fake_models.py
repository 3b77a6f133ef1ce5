"""Models, adapters and optimiser states without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .settings import PlanSettings


def with_adapters(model: nn.Module, settings: PlanSettings) -> nn.Module:
    """The model with LoRA adapters of the settings, on the meta device."""
    from peft import LoraConfig, get_peft_model

    targets = list(settings.lora_targets) if isinstance(settings.lora_targets, tuple) else settings.lora_targets
    config = LoraConfig(
        r=settings.lora_r, lora_alpha=2 * settings.lora_r, target_modules=targets, task_type="CAUSAL_LM"
    )
    with torch.device("meta"):
        adapted: Any = get_peft_model(model, config)
    return adapted


def fake(module: Any) -> Any:
    """Replace meta tensors by fake ones on the CPU, shared ones by the same one. Call it inside a fake mode."""
    made: dict[int, Tensor] = {}

    def faked(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    keep = []
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    keep.append(tensor)  # no identity is used twice
                    store[name] = faked(tensor)
    return module


def optimizer_state(parameter: Tensor, optimizer: str) -> list[Tensor]:
    """What the optimiser keeps of a parameter; bitsandbytes keeps small ones whole."""
    if optimizer == "sgd":
        return []
    dtype = torch.uint8 if optimizer == "adamw_8bit" and parameter.numel() >= 4096 else parameter.dtype
    return [torch.empty(parameter.shape, dtype=dtype) for _ in range(2)]


def base_of(model: Any) -> Any:
    """The causal LM inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def output_embeddings(model: Any) -> Any:
    """The LM head."""
    return base_of(model).get_output_embeddings()


def forward_arguments(ids: Tensor, attention: Tensor | None) -> dict[str, Any]:
    """Arguments of a backbone\'s forward; without padding there is no mask."""
    arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    return arguments if attention is None else arguments | {"attention_mask": attention}
