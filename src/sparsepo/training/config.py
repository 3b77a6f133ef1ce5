"""SparsePOConfig: TRL's DPOConfig and the settings of token-level preference optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import SchedulerType

from sparsepo.masks.gates import GATES
from sparsepo.objectives import OBJECTIVES

from .trl_bridge import DPOConfig, bf16_is_supported
from .validation import (
    check_all_finite,
    check_bool,
    check_choice,
    check_fraction,
    check_number,
    check_steps,
    check_string_list,
)

MASK_KINDS = ("learned", "activation", "dense", "random", "data")
GATE_NAMES = tuple(GATES)
# schedules that are a function of the step
SCHEDULER_NAMES = tuple(kind.value for kind in SchedulerType if kind.value not in ("reduce_lr_on_plateau", "greedy"))
ACTIVATION_GROUPS = ("mlp", "attn", "resid", "logits")


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    metadata: dict[str, Any] = {"help": help}
    if choices is not None:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


@dataclass
class SparsePOConfig(DPOConfig):
    """Settings of :class:`SparsePOTrainer`: all of TRL's ``DPOConfig`` and the ones below.

    ``None`` means unset: the value then follows from the objective and the preset (docs/method.md lists them), and a
    value given explicitly always wins. A setting that the chosen objective or mask does not read is refused.

    Differences from DPOConfig's defaults: ``beta`` is unset (0.1; SimPO 2.0), and ``bf16`` follows the device, so that
    a plain CPU run needs no flag.
    """

    # Objective
    objective: str = _setting("sparsepo", "Loss: sparsepo, mapo, tdpo1, tdpo2, dpo, simpo or dpop.", tuple(OBJECTIVES))
    preset: str | None = _setting(
        None, "'published': every setting that you leave unset as the paper's code has it.", ("published",)
    )
    beta: float | None = _setting(None, "β of the implicit reward. Unset: 0.1 (simpo: 2.0).")
    alpha: float | None = _setting(None, "tdpo2: weight α of the KL difference. Unset: 0.5.")
    gamma: float | None = _setting(None, "simpo: target margin γ, in units of the reward. Unset: 0.5.")
    lam: float | None = _setting(None, "dpop: weight λ of the penalty. Unset: 5.0.")
    sft_weight: float = _setting(0.0, "Weight of −log π(chosen) per token, added to any objective.")
    kl_anchor: float | None = _setting(
        None,
        "λ of the KL anchor: λ Σ_t KL(ref‖policy) over ALL response tokens, added to any objective. Unset: 0.1 where "
        "mask_log_ratio_weight, an L1 penalty or a target makes masks sparse (a token with both masks at zero is held by "
        "nothing else), otherwise 0.",
    )

    kl_anchor_share: float | None = _setting(
        None,
        "Share of the tokens that no mask keeps which enter the KL anchor in training, drawn afresh each step and weighed "
        "by its inverse: unbiased, and sparsity still saves time. 1 reads all of them. Unset: 0.25.",
    )

    # Masks
    mask: str | None = _setting(
        None,
        "Kind of mask: learned (sparsepo's default), activation (mapo's), dense (ones), random (a control), data "
        "(weights from dataset columns).",
        MASK_KINDS,
    )
    mask_sharing: str | None = _setting(
        None,
        "learned, random: 'common', one mask for reward and KL (default), or 'independent', one each.",
        ("common", "independent"),
    )
    mask_on: str | None = _setting(
        None, "What the mask weighs: 'both' (default), 'reward' (KL mask 1) or 'kl'.", ("both", "reward", "kl")
    )
    mask_position: str | None = _setting(
        None,
        "Where the mask of token t is read: 'predicting' (t−1, the paper's; default) or 'token' (t, sees the token).",
        ("predicting", "token"),
    )
    mask_init: str | None = _setting(
        None,
        "learned: start from 'ones' (as TDPO1; default), as 'published' (random, near zero), or fitted to 'mapo' masks.",
        ("ones", "published", "mapo"),
    )
    mask_init_pairs: int | None = _setting(None, "mask_init=mapo: training pairs that the fit reads. Unset: 64.")
    mask_layers: str | None = _setting(None, "learned: read 'all' blocks (default) or the 'last'.", ("all", "last"))
    mask_map: str | None = _setting(
        None,
        "learned: from a layer's state to its number: 'mlp' (a hidden layer with GELU), 'linear' or 'two_layer' (linear "
        "too, as published). Unset: mlp (published, or mask_layers=last: linear).",
        ("linear", "two_layer", "mlp"),
    )
    mask_map_width: int | None = _setting(None, "learned, two_layer, mlp: hidden width. Unset: 200; mlp 16.")
    mask_activation: str | None = _setting(
        None,
        "learned: of the layers' numbers: relu (the paper's) or leaky (slope 0.1 below zero, so that tokens whose "
        "layers are all shut still differ and learn). Unset: leaky where a target sparsity is set, otherwise relu.",
        ("relu", "leaky"),
    )
    mask_gate: str | None = _setting(
        None,
        "learned: from the head's number to the mask: relu (the paper's; default), clamped (≤ 1), normalised (mean 1 over "
        "the response), sigmoid (dense), binary, hard_concrete, gumbel_sigmoid, topk, sparsemax or entmax.",
        GATE_NAMES,
    )
    mask_gate_temperature: float | None = _setting(
        None,
        "learned: temperature of the gates that have one. Unset: sigmoid, binary, gumbel_sigmoid 1; hard_concrete 2/3; "
        "sparsemax, entmax 0.1 (smaller is sparser).",
    )
    mask_topk_share: float | None = _setting(
        None, "learned, mask_gate=topk: share of each response's tokens that is kept. Unset: 0.2."
    )
    mask_activation_groups: list[str] | None = field(
        default=None,
        metadata={
            "help": "activation: groups to average: any of mlp attn resid logits. Unset: all that the architecture has."
        },
    )
    mask_random_sparsity: float | None = _setting(None, "random: share of exact zeros. Unset: 0.")
    mask_learning_rate: float | None = _setting(
        None,
        "learned: learning rate of the mask head; 0 holds it. Unset: 25 × learning_rate (without mask_log_ratio_weight "
        "10 ×; published: 1 ×).",
    )
    mask_weight_decay: float | None = _setting(None, "learned: weight decay of the mask head. Unset: 0.01.")
    mask_dropout: float | None = _setting(
        None, "learned: dropout inside the mask head, active in training whatever disable_dropout says. Unset: 0."
    )
    mask_l1_reward: float | None = _setting(None, "learned: L1 weight λ_u on the reward mask. Unset: 0.")
    mask_l1_kl: float | None = _setting(None, "learned: L1 weight λ_d on the KL mask. Unset: 0.")
    mask_log_ratio_weight: float | None = _setting(
        None,
        "learned: weight of the fit of the mask to the size of the policy's own log-ratios (KL masks: to the KL), beside "
        "the preference loss: masks find the tokens that training moves (docs/masks.md). 0 leaves it out. Unset: 1 "
        "(published, or a mask handed to the trainer: 0).",
    )
    mask_target_sparsity: float | None = _setting(
        None,
        "learned: share of response tokens whose mask shall be exactly zero, reached by moving a threshold and held to the "
        "end of training. Both masks. Unset: none is asked for.",
    )
    mask_target_sparsity_reward: float | None = _setting(None, "learned, independent: the same for the reward mask.")
    mask_target_sparsity_kl: float | None = _setting(None, "learned, independent: the same for the KL mask.")
    mask_sparsity_warmup: float | None = _setting(
        None,
        "Steps, or below 1 the share of training, over which the target sparsity is approached. Unset: 0.5.",
    )
    mask_hold_steps: float | None = _setting(
        None,
        "learned: steps, or below 1 the share of training, in which the mask stays at its start while the policy trains. "
        "Unset: 0.",
    )
    mask_l1_warmup: float | None = _setting(
        None,
        "learned: steps, or below 1 the share of training, over which the L1 weights rise linearly from 0, after "
        "mask_hold_steps. Unset: 0.",
    )
    mask_lr_scheduler_type: str | None = _setting(
        None, "learned: learning rate schedule of the mask head. Unset: lr_scheduler_type.", SCHEDULER_NAMES
    )
    mask_warmup_steps: float | None = _setting(
        None, "learned: steps, or below 1 the share, of the mask head's own learning rate warm-up. Unset: warmup_steps."
    )
    mask_max_grad_norm: float | None = _setting(
        None, "learned: gradient norm at which the mask head is clipped, apart from the policy. Unset: max_grad_norm."
    )

    mask_on_failure: str | None = _setting(
        None,
        "What the mask health monitor does when a mask fails (docs/health.md): 'warn' (default), or 'stop': also save a "
        "checkpoint and end training.",
        ("warn", "stop"),
    )

    # Scoring and data
    scorer: str = _setting(
        "auto",
        "How per-token scores are computed: 'fused' (one pass, bounded memory), 'dense' (rows of logits by autograd, the "
        "readable truth) or 'auto' (fused).",
        ("auto", "fused", "dense"),
    )
    scorer_memory_mib: float | None = _setting(
        None, "fused: memory for rows of logits, MiB; a pair that does not fit is scored in two passes. Unset: 512."
    )
    skip_masked: bool = _setting(
        True,
        "Leave tokens that no mask keeps out of the computation on steps that are not logged: loss and gradients are the "
        "same, logps/*, kl/*, entropy and logits/* then come from logged steps only.",
    )
    share_prefix: str = _setting(
        "auto",
        "Compute each prompt once for both responses: 'auto' (where it is proven equal and pays), 'on' (an error where it "
        "is not equal) or 'off'.",
        ("auto", "on", "off"),
    )
    precompute_ref: bool = _setting(
        False,
        "Run the reference once over all rows before training and keep what is read of it on disk (docs/performance.md): "
        "during training it is neither run nor loaded. Found again by later runs with the same reference and rows.",
    )
    precompute_ref_dir: str | None = _setting(
        None, "precompute_ref: folder of the caches, for runs that share them. Unset: OUTPUT_DIR/_reference_cache."
    )
    precompute_ref_max_gib: float | None = _setting(
        None, "precompute_ref: estimated size over which nothing is begun, GiB. Unset: 50."
    )
    non_finite: str = _setting(
        "stop",
        "A step whose loss or gradient is not finite: 'stop' (after a checkpoint) or 'skip' it (docs/robust_runs.md).",
        ("stop", "skip"),
    )
    max_prompt_length: int | None = _setting(
        None, "Keep only the last N tokens of a prompt. Unset: prompts are kept whole."
    )

    def __post_init__(self) -> None:
        self.bf16: bool | None
        if self.bf16 is None:
            self.bf16 = not self.fp16 and bf16_is_supported(use_cpu=self.use_cpu)
        self._check_settings()
        # without a bound gradients are not clipped, yet their norm is measured
        check_all_finite({n: v for n, v in vars(self).items() if (n, v) != ("max_grad_norm", math.inf)})
        # TRL's default has the old name, for which nobody need be warned
        for name in ("checkpointing", "checkpointing_kwargs"):
            if getattr(self, f"activation_{name}") is None:
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
        super().__post_init__()

    def _check_settings(self) -> None:
        """YAML and Python values are not type-checked by the parser: do it here, naming setting, value and mend."""
        check_choice("objective", self.objective, tuple(OBJECTIVES), optional=False)  # as it is now: users add to it
        check_choice("preset", self.preset, ("published",))
        check_choice("mask", self.mask, MASK_KINDS)
        check_choice("mask_sharing", self.mask_sharing, ("common", "independent"))
        check_choice("mask_on", self.mask_on, ("both", "reward", "kl"))
        check_choice("mask_position", self.mask_position, ("predicting", "token"))
        check_choice("mask_init", self.mask_init, ("ones", "published", "mapo"))
        check_choice("mask_activation", self.mask_activation, ("relu", "leaky"))
        check_choice("mask_gate", self.mask_gate, GATE_NAMES)
        check_choice("mask_lr_scheduler_type", self.mask_lr_scheduler_type, SCHEDULER_NAMES)
        check_choice("mask_layers", self.mask_layers, ("all", "last"))
        check_choice("mask_map", self.mask_map, ("linear", "two_layer", "mlp"))
        check_choice("mask_on_failure", self.mask_on_failure, ("warn", "stop"))
        check_choice("non_finite", self.non_finite, ("stop", "skip"), optional=False)
        check_choice("scorer", self.scorer, ("auto", "fused", "dense"), optional=False)
        check_choice("share_prefix", self.share_prefix, ("auto", "on", "off"), optional=False)
        check_number("scorer_memory_mib", self.scorer_memory_mib, above=0)
        if self.scorer == "dense" and self.scorer_memory_mib is not None:
            raise ValueError(f"scorer_memory_mib={self.scorer_memory_mib!r} has no effect with scorer='dense'.")
        check_string_list("mask_activation_groups", self.mask_activation_groups, ACTIVATION_GROUPS)
        for name in ("beta", "mask_max_grad_norm", "mask_gate_temperature", "mask_topk_share"):
            check_number(name, getattr(self, name), above=0)
        at_least_zero = (
            "alpha",
            "gamma",
            "lam",
            "kl_anchor",
            "mask_weight_decay",
            "mask_l1_reward",
            "mask_l1_kl",
            "mask_log_ratio_weight",
        )
        for name in (*at_least_zero, "mask_learning_rate"):
            check_number(name, getattr(self, name), least=0)
        check_number("sft_weight", self.sft_weight, least=0, optional=False)
        check_number("label_smoothing", self.label_smoothing, least=0, optional=False)
        check_number("kl_anchor_share", self.kl_anchor_share, above=0)
        if self.kl_anchor_share is not None and self.kl_anchor_share > 1:
            raise ValueError(f"kl_anchor_share={self.kl_anchor_share!r} must lie in (0, 1].")
        for name in ("mask_sparsity_warmup", "mask_hold_steps", "mask_l1_warmup", "mask_warmup_steps"):
            check_steps(name, getattr(self, name))
        for name in ("mask_target_sparsity", "mask_target_sparsity_reward", "mask_target_sparsity_kl"):
            check_fraction(name, getattr(self, name))
        self._check_cache()
        check_fraction("mask_dropout", self.mask_dropout)
        check_fraction("mask_random_sparsity", self.mask_random_sparsity)
        for name in ("mask_init_pairs", "mask_map_width", "max_prompt_length"):
            check_number(name, getattr(self, name), least=1, integer=True)
        longest = self.max_prompt_length
        if longest is not None and self.max_length is not None and longest >= self.max_length:
            raise ValueError(
                f"max_prompt_length={longest} leaves no room for a response in max_length={self.max_length}; "
                "make it smaller."
            )

    def _check_cache(self) -> None:
        check_bool("precompute_ref", self.precompute_ref)
        check_number("precompute_ref_max_gib", self.precompute_ref_max_gib, above=0)
        check_number("precompute_ref_batch_size", self.precompute_ref_batch_size, least=1, integer=True)
        if self.precompute_ref_dir is not None and not (
            self.precompute_ref_dir and isinstance(self.precompute_ref_dir, str)
        ):
            raise ValueError(f"precompute_ref_dir={self.precompute_ref_dir!r} must be the path of a folder.")
        for name in ("precompute_ref_dir", "precompute_ref_max_gib", "precompute_ref_batch_size"):
            if getattr(self, name) is not None and not self.precompute_ref:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect without precompute_ref=True.")
