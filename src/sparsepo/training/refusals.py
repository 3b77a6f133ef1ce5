"""What cannot work with token-level scores is refused at construction, with the reason and the mend."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import ProcessorMixin

from sparsepo.masks.base import Masker
from sparsepo.objectives import Objective

from .config import SparsePOConfig
from .step import base_model_of


def refuse_settings(config: SparsePOConfig) -> None:
    """Refuse TRL settings that token-level scores contradict. Raises ``ValueError``."""
    refused = {
        "padding_free": (config.padding_free, "TRL 1.16 has no padding-free DPO; leave it False."),
        "precompute_ref_log_probs": (
            config.precompute_ref_log_probs,
            "it stores one sum a sequence, while masks and KL need the reference at every token; leave it False"
            + (
                " (precompute_ref=True, which is set too, does its work)."
                if config.precompute_ref
                else " and set precompute_ref=True, which stores what each token needs."
            ),
        ),
        "ld_alpha": (config.ld_alpha is not None, "it reweights sequence sums; use TRL's DPOTrainer for LD-DPO."),
        "f_divergence_type": (
            config.f_divergence_type != "reverse_kl",
            "token-level scores are derived for reverse_kl only.",
        ),
        "use_weighting": (config.use_weighting, "WPO weighs whole sequences; use TRL's DPOTrainer."),
        "loss_weights": (config.loss_weights is not None, "there is one loss; an SFT term is sft_weight."),
        "torch_compile": (
            config.torch_compile,
            "a step calls backbone and head apart; compile the backbone yourself: "
            "model.base_model.compile() before the trainer is made.",
        ),
        "mask_max_grad_norm": (
            config.mask_max_grad_norm is not None and not config.max_grad_norm,
            f"with max_grad_norm={config.max_grad_norm!r} Trainer clips nothing; give max_grad_norm a large value.",
        ),
        "enable_jit_checkpoint": (
            config.enable_jit_checkpoint,
            "SIGTERM and Ctrl-C always save a checkpoint here, after the step under way; leave it False.",
        ),
        "n_gpu": (
            config.n_gpu > 1,
            "one process with several GPUs would replicate the model for each batch (DataParallel); start one process a "
            "GPU with `accelerate launch`, or show this one a single GPU.",
        ),
    }
    for name, (is_set, reason) in refused.items():
        if is_set:
            raise ValueError(f"{name}={getattr(config, name)!r} is not supported: {reason}")


def refuse_processor(processing_class: Any) -> None:
    """Refuse vision-language processors."""
    if isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"processing_class={type(processing_class).__name__} belongs to a vision-language model, which is not "
            "supported: masks are defined over text tokens. Use a text model and its tokenizer."
        )


def refuse_dataset(dataset: Any, name: str) -> None:
    """Refuse datasets with images."""
    first = next(iter(dataset), None) if dataset is not None else None
    if first is not None and ("image" in first or "images" in first):
        raise ValueError(f"The {name} dataset has an image column; vision models are not supported. Remove the column.")
    if dataset is not None and first is None:
        raise ValueError(f"The {name} dataset has no rows.")


def refuse_model(model: Any, role: str) -> None:
    """Refuse models whose scores would be wrong or whose adapters would never train."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"The {role} {type(model).__name__} is an encoder-decoder; only causal language models work.")
    if getattr(config, "vision_config", None) is not None:
        raise ValueError(f"The {role} {type(model).__name__} is a vision-language model, which is not supported.")
    for name, adapter in getattr(model, "peft_config", {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise ValueError(
                f"Adapter {name!r} ({adapter.peft_type}) is prompt learning: its virtual tokens shift every position "
                "that masks and scores read. Use LoRA or another adapter that leaves the sequence alone."
            )
    base = base_model_of(model)
    head = base.get_output_embeddings()
    if head is None:
        raise ValueError(f"The {role} {type(base).__name__} has no language-model head.")
    if hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        raise ValueError(
            "An adapter on the LM head is not supported: log-probabilities are computed from its weight directly, so the "
            "adapter would never be trained. Take 'lm_head' out of target_modules."
        )
    if any(hasattr(p, "full_tensor") for p in base.parameters()):
        raise ValueError(
            f"The {role} is split over devices already (tp_plan or distributed_config); load it whole: FSDP2 shards it when "
            "training starts (--accelerate_config fsdp2)."
        )
    if not head.weight.is_floating_point() or hasattr(head.weight, "quant_state"):
        raise ValueError(
            f"The {role}'s LM head is quantised ({type(head.weight).__name__}, {head.weight.dtype}); leave it in "
            "floating point (llm_int8_skip_modules=['lm_head'])."
        )


def refuse_peft_config(peft_config: Any) -> None:
    """Refuse prompt learning and LM-head adapters before the model is wrapped."""
    if peft_config is None:
        return
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"peft_config={type(peft_config).__name__} is prompt learning: its virtual tokens shift every position that "
            "masks and scores read. Use LoRA or another adapter that leaves the sequence alone."
        )
    targets = getattr(peft_config, "target_modules", None)
    if isinstance(targets, (list, set, tuple)) and "lm_head" in targets:
        raise ValueError(
            "target_modules contains 'lm_head', which is not supported: log-probabilities are computed from its weight "
            "directly, so the adapter would never be trained. Take it out."
        )


def refuse_reference(policy: nn.Module, reference: nn.Module | None) -> None:
    """Refuse a reference whose vocabulary differs from the policy's."""
    if reference is None:
        return
    sizes = [base_model_of(m).get_output_embeddings().weight.shape[0] for m in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The policy's vocabulary has {sizes[0]} entries and the reference's {sizes[1]}: log-ratios and KL need one "
            "vocabulary. Use a reference with the policy's tokenizer."
        )


def refuse_cache(config: SparsePOConfig, objective: Objective) -> None:
    """Refuse a reference cache that nothing reads or that the reference would outrun. Raises ``ValueError``."""
    if not config.precompute_ref:
        return
    if not objective.needs_reference:
        raise ValueError(
            f"precompute_ref=True has no effect with objective={objective.name!r}, which reads no reference; leave it False."
        )
    if config.sync_ref_model:
        raise ValueError(
            "precompute_ref=True keeps what a fixed reference says, and sync_ref_model=True moves it during training; set "
            "one of them to False."
        )


def refuse_sync_without_reference(reference: nn.Module | None, objective: str) -> None:
    """Refuse to synchronise a reference that is not loaded because nothing reads it."""
    if reference is None:
        raise ValueError(
            f"sync_ref_model=True has no effect with objective={objective!r}, which reads no reference; leave it False."
        )


def refuse_low_precision_masks(config: SparsePOConfig, masker: Masker | None) -> None:
    """A trained mask head must stay in float32, where its small steps survive."""
    if masker is None or not masker.is_trainable:
        return
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(config, name):
            raise ValueError(f"{name}=True would cast the mask head to half precision for good; leave it False.")


def refuse_reentrant_routing(config: SparsePOConfig, has_auxiliary_loss: bool) -> None:
    """Refuse checkpointing that cuts the router's logits off the graph: the auxiliary loss would train nothing."""
    is_reentrant = bool((config.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
    if has_auxiliary_loss and config.gradient_checkpointing and is_reentrant:
        raise ValueError(
            "gradient_checkpointing_kwargs={'use_reentrant': True} gives a mixture of experts' auxiliary loss no gradient: "
            "router logits are taken from a pass without graph. Leave use_reentrant unset, or set router_aux_loss_coef=0.0."
        )
