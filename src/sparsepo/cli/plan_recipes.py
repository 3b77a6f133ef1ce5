"""A training recipe as what a plan is asked about: the same checks and defaults as `sparsepo train`."""

from __future__ import annotations

from typing import Any

from .base import CliError

_OPTIMIZERS = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_bnb_8bit": "adamw_8bit",
               "adamw_8bit": "adamw_8bit", "sgd": "sgd"}  # fmt: skip
_SHARDINGS = {"single_gpu": "none", "ddp": "ddp", "multi_gpu": "ddp", "fsdp1": "fsdp2", "fsdp2": "fsdp2",
              "zero2": "zero2", "zero3": "zero3"}  # fmt: skip


def settings_of_recipe(path: str) -> dict[str, Any]:
    """Values of a :class:`PlanSettings`, and ``model``.

    Raises:
        CliError: a setting of the recipe is wrong, or one that a plan cannot follow; names it.
    """
    from .train import parse

    parsed = parse(["--config", path])
    config, model, own, given = parsed.config, parsed.model, parsed.own, parsed.given
    if model.load_in_8bit:
        raise CliError("load_in_8bit: a plan does not follow weights of 8 bits. Plan with --precision bf16 --lora: the "
                       "weights then take about half of what it says.")  # fmt: skip
    values: dict[str, Any] = {
        "model": model.model_name_or_path,
        "objective": config.objective,
        "max_length": config.max_length,
        "epochs": float(config.num_train_epochs),
        "batch_size": config.per_device_train_batch_size,
        "accumulation": config.gradient_accumulation_steps,
        "checkpointing": bool(config.gradient_checkpointing),
        "precompute_ref": config.precompute_ref,
        "scorer_memory_mib": config.scorer_memory_mib,
        "lora": bool(model.use_peft),
        "lora_r": model.lora_r,
        "load_in_4bit": bool(model.load_in_4bit),
        "double_quant": bool(model.use_bnb_nested_quant),
        "precision": _precision(config, model, given),
        "optimizer": _known("optim", str(getattr(config.optim, "value", config.optim)), _OPTIMIZERS),
    }
    targets = model.lora_target_modules
    values["lora_targets"] = targets if targets is None or isinstance(targets, str) else tuple(targets)
    values |= _masks(config)
    if own.accelerate_config is not None:
        values["sharding"] = _known("accelerate_config", own.accelerate_config, _SHARDINGS)
    if own.num_processes is not None:
        values["devices"] = own.num_processes
    return values


def _masks(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if config.mask is not None:
        found["mask"] = config.mask if config.mask in ("learned", "activation") else "other"
    if config.mask_sharing is not None:
        found["independent"] = config.mask_sharing == "independent"
    if config.mask_layers is not None:
        found["mask_layers"] = config.mask_layers
    return found


def _precision(config: Any, model: Any, given: set[str]) -> str:
    """As it will be on a GPU, where bf16 is on unless it is switched off."""
    if str(model.dtype) in ("bfloat16", "float16"):
        return "bf16"
    if "bf16" in given and not config.bf16 and not config.fp16:
        return "fp32"
    return "mixed"


def _known(name: str, value: str, known: dict[str, str]) -> str:
    if value not in known:
        raise CliError(f"{name}={value}: a plan knows {', '.join(known)}; give the nearest as a flag instead.")
    return known[value]
