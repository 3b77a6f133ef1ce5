"""Ways to spread a run over devices that cannot work here are refused before models are loaded and rows prepared."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from .config import SparsePOConfig

_AXES = {
    "tp_size": "tensor parallelism splits the LM head and the blocks whose states masks read",
    "cp_size": "context parallelism splits sequences, and a pair's loss couples all tokens of both",
    "sp_size": "sequence parallelism splits sequences, and a pair's loss couples all tokens of both",
}
_SPLIT_AT_LOADING = ("tp_plan", "tp_size", "distributed_config", "device_mesh")


def refuse_parallelism(config: SparsePOConfig, learned: bool) -> None:
    """Refuse what the settings or ``accelerate launch`` ask for and this trainer cannot do. Raises ``ValueError``.

    Args:
        config: the run's settings.
        learned: whether a mask head is trained.
    """
    _refuse_axes(config)
    if _uses_deepspeed(config) and learned:
        raise ValueError(
            "A learned mask does not work under DeepSpeed: its engine clips all gradients together, casts all parameters to "
            "one precision and steps them itself. Use DDP or FSDP2 (--accelerate_config ddp or fsdp2), or a mask without "
            "training (objective='mapo', mask='random' or 'data')."
        )
    version = _fsdp_version(config)
    if version == 1:
        raise ValueError(
            "FSDP version 1 is not supported: it frees the LM heads' weights before both are scored together. Set "
            "fsdp_version: 2 (--accelerate_config fsdp2)."
        )
    if version is None:
        return
    if learned and config.fp16:
        raise ValueError(
            "fp16=True with a learned mask does not work under FSDP2: the gradient scaler cannot take sharded and whole "
            "gradients together. Use bf16=True."
        )
    if config.sync_ref_model:
        raise ValueError(
            "sync_ref_model=True does not work under FSDP2: TRL would write into gathered copies of the reference's "
            "weights. Use DDP, or leave it False."
        )


def refuse_unsharded_run(config: SparsePOConfig, accelerator: Any) -> None:
    """Refuse a run of several processes that asks for FSDP and does not get it. Raises ``ValueError``."""
    if _fsdp_version(config) is None or accelerator.num_processes == 1:
        return
    if str(accelerator.distributed_type.value) != "FSDP":
        raise ValueError(
            f"FSDP is asked for and accelerate runs {accelerator.distributed_type.value}: it shards on accelerators (GPUs) "
            "only, and would go on with a whole model in every process. Use a multi-process configuration without FSDP "
            "(--accelerate_config ddp)."
        )


def refuse_quantisation(quantization_config: Any, config: SparsePOConfig, has_adapter: bool = True) -> None:
    """Refuse bitsandbytes weights that could not be loaded or trained, or that FSDP2 would not shard. Raises
    ``ValueError``."""
    if quantization_config is None:
        return
    bits = 4 if getattr(quantization_config, "load_in_4bit", False) else 8
    is_bitsandbytes = bits == 4 or getattr(quantization_config, "load_in_8bit", False)
    if not is_bitsandbytes:
        return
    refuse_missing_bitsandbytes(bits)
    if not has_adapter:
        raise ValueError(without_adapter(bits))
    if _fsdp_version(config) is None:
        return
    if bits == 8:
        raise ValueError("load_in_8bit=True cannot be sharded by FSDP2; use load_in_4bit=True, or DDP.")
    storage = getattr(quantization_config, "bnb_4bit_quant_storage", None)
    if not getattr(storage, "is_floating_point", False):
        raise ValueError(
            f"bnb_4bit_quant_storage={str(storage).removeprefix('torch.')} stays whole on every device under FSDP2; set "
            "bnb_4bit_quant_storage=bfloat16 (the type of the other weights), so that the quantised weights are sharded."
        )


def without_adapter(bits: int) -> str:
    """What is wrong with quantised weights alone."""
    return (
        f"load_in_{bits}bit=True without an adapter: quantised weights are not trained. Give a peft_config (--use_peft), or "
        "leave the quantisation out."
    )


def refuse_missing_bitsandbytes(bits: int) -> None:
    """Refuse quantised loading without the library that does it. Raises ``ValueError``."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"load_in_{bits}bit=True needs bitsandbytes, which is not installed: pip install bitsandbytes (or "
            "'sparsepo[qlora]'), or train LoRA on unquantised weights."
        )


def _refuse_axes(config: SparsePOConfig) -> None:
    for axis, reason in _AXES.items():
        size = _axis(config, axis)
        if size > 1:
            raise ValueError(
                f"{axis}={size} is not supported: {reason}. Use data parallelism (ddp) or sharding (fsdp2); for long "
                "sequences share_prefix, gradient_checkpointing and a smaller max_length."
            )
    given = config.model_init_kwargs or {}
    given = given if isinstance(given, dict) else {}
    for name in _SPLIT_AT_LOADING:
        if given.get(name):
            raise ValueError(
                f"model_init_kwargs has {name}={given[name]!r}, which splits a model while it is loaded. Leave it out: "
                "FSDP2 (--accelerate_config fsdp2) shards models that are loaded whole."
            )


def _axis(config: SparsePOConfig, axis: str) -> int:
    """Size of an axis in the settings, or in what ``accelerate launch`` was told."""
    parallelism = getattr(config, "parallelism_config", None)
    if parallelism is not None:
        return int(getattr(parallelism, axis, 1) or 1)
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return 1
    return int(os.environ.get(f"PARALLELISM_CONFIG_{axis.upper()}", "1"))


def _uses_deepspeed(config: SparsePOConfig) -> bool:
    return bool(config.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _fsdp_version(config: SparsePOConfig) -> int | None:
    """Version of FSDP that is asked for; None without FSDP."""
    arguments = getattr(config, "fsdp_plugin_args", None)
    if arguments is not None:
        return int(arguments.get("fsdp_version", 2))
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    return int(os.environ.get("FSDP_VERSION", "1"))
