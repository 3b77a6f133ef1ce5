"""Settings of gates, schedules and target sparsity: from the config's values to what the mask and its control read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsepo.masks import LearnedMask, Masker
from sparsepo.masks.controller import SparsityController
from sparsepo.masks.gates import Gate, build_gate

from .config import SparsePOConfig
from .schedules import MaskSchedule

GATE_SETTINGS = ("mask_gate", "mask_gate_temperature", "mask_topk_share")
TARGET_SETTINGS = ("mask_target_sparsity", "mask_target_sparsity_reward", "mask_target_sparsity_kl")
SCHEDULE_SETTINGS = (
    "mask_hold_steps",
    "mask_sparsity_warmup",
    "mask_l1_warmup",
    "mask_lr_scheduler_type",
    "mask_warmup_steps",
)


def gate_of(config: SparsePOConfig, mask: Masker | None) -> Gate | None:
    """The learned mask's gate; None where a mask that was handed over has none.

    Raises:
        ValueError: a setting that the gate does not read, in the config's names.
    """
    if mask is not None:
        return mask.gate if isinstance(mask, LearnedMask) and mask.activation != "none" else None
    try:
        return build_gate(config.mask_gate or "relu", config.mask_gate_temperature, config.mask_topk_share)
    except ValueError as error:
        message = str(error)
        for name in ("gate_temperature", "topk_share", "gate"):
            message = message.replace(f"{name}=", f"mask_{name}=")
        raise ValueError(message) from None


def target_sparsity(config: SparsePOConfig, mask: Masker | None) -> dict[str, float]:
    """Requested share of zeros by the head's name; empty where none is requested.

    Raises:
        ValueError: targets that contradict each other, or the mask, or its gate.
    """
    given = {name: getattr(config, name) for name in TARGET_SETTINGS if getattr(config, name) is not None}
    if not given:
        return {}
    first = next(iter(given))
    gate = gate_of(config, mask)
    if gate is None:
        raise ValueError(f"{first}={given[first]!r} needs a learned mask with a gate; leave it unset.")
    mask_on = (config.mask_on if mask is None else mask.mask_on) or "both"
    sharing = (config.mask_sharing if mask is None else getattr(mask, "sharing", None)) or "common"
    targets = _by_head(given, mask_on, sharing)
    for target in targets.values():
        SparsityController.for_gate(gate, target)
    return targets


def _by_head(given: Mapping[str, float], mask_on: str, sharing: str) -> dict[str, float]:
    both, *own_names = TARGET_SETTINGS
    own = {name.rsplit("_", 1)[1]: given[name] for name in own_names if name in given}
    if both in given and own:
        raise ValueError(
            f"{both}={given[both]!r} sets both masks, and "
            + ", ".join(f"{both}_{side}={value!r}" for side, value in own.items())
            + " one of them; leave one or the other unset."
        )
    if mask_on != "both":
        other = "kl" if mask_on == "reward" else "reward"
        if other in own:
            raise ValueError(
                f"{both}_{other}={own[other]!r} has no effect with mask_on={mask_on!r}: that mask is constant."
            )
        return {mask_on: own.get(mask_on, given.get(both, 0.0))}
    if sharing == "common":
        if own:
            side, value = next(iter(own.items()))
            raise ValueError(
                f"{both}_{side}={value!r}: a common mask is one mask for reward and KL; set {both}, or "
                "mask_sharing='independent'."
            )
        return {"shared": given[both]}
    return own or {"reward": given[both], "kl": given[both]}


def mask_schedule(config: SparsePOConfig) -> MaskSchedule:
    """The mask's schedule. Raises ``ValueError`` for a warm-up of something that was not asked for."""
    needs = {
        "mask_sparsity_warmup": TARGET_SETTINGS,
        "mask_l1_warmup": ("mask_l1_reward", "mask_l1_kl"),
    }
    for name, readers in needs.items():
        if getattr(config, name) is not None and not any(getattr(config, reader) for reader in readers):
            raise ValueError(f"{name}={getattr(config, name)!r} has no effect without {' or '.join(readers)}.")
    values: dict[str, Any] = {
        "hold": config.mask_hold_steps,
        "sparsity_warmup": config.mask_sparsity_warmup,
        "l1_warmup": config.mask_l1_warmup,
        "scheduler": config.mask_lr_scheduler_type,
        "warmup_steps": config.mask_warmup_steps,
    }
    return MaskSchedule(**{name: value for name, value in values.items() if value is not None})


def refuse_constant_l1(l1: Mapping[str, float], gate: Gate | None) -> None:
    """An L1 norm that is the number of tokens whatever the head does would be ignored."""
    for name, weight in l1.items():
        if weight and gate is not None and gate.mean_one:
            raise ValueError(
                f"mask_{name}={weight!r} has no effect with mask_gate={gate.name!r}, whose masks have mean 1: use "
                "mask_target_sparsity (normalised) or mask_gate_temperature (sparsemax, entmax)."
            )
