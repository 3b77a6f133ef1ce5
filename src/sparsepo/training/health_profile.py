"""What a run's settings ask of its masks: the one place where the health monitor reads settings and maskers."""

from __future__ import annotations

from typing import Any

from sparsepo.masks import Masker
from sparsepo.masks.advice import Advice
from sparsepo.masks.health_types import COMPUTED_SIGNATURES, GIVEN_SIGNATURES, SIGNATURES, HealthProfile, in_steps

BOUNDED_GATES = ("clamped", "sigmoid", "binary", "hard_concrete", "gumbel_sigmoid")  # to [0, 1]


def health_profile(config: Any, beta: float, masker: Masker, learning_rate: float) -> HealthProfile | None:
    """The profile of a run, or None where there is nothing to watch (constant masks).

    Args:
        config: the run's settings.
        beta: the objective's β.
        masker: the run's masker.
        learning_rate: of the mask head; 0 where it is not trained.
    """
    masks = monitored_masks(masker)
    if masker.kind == "dense" or not masks:
        return None
    trained = masker.is_trainable
    signatures = SIGNATURES if trained else GIVEN_SIGNATURES if masker.kind == "data" else COMPUTED_SIGNATURES
    l1 = {mask: _number(config, f"mask_l1_{mask}") for mask in masks}
    target = {mask: _target(config, masker, mask) for mask in masks}
    if masks == {"reward": "the common mask"}:  # either weight or target acts on the one mask
        l1 = {"reward": l1["reward"] or _number(config, "mask_l1_kl")}
    return HealthProfile(
        masks=masks,
        signatures=signatures,
        beta=beta,
        advice=Advice(
            kind="learned" if trained else masker.kind,
            learning_rate=learning_rate,
            init=getattr(masker, "init", None) if trained else None,
            l1=l1,
            target=target,
            gate=_gate(masker) if trained else None,
            recovers=not masker.flat_at_zero,
        ),
        l1=l1,
        target=target,
        free=free_periods(config, any(target.values())),
        limit=_limit(masker),
    )


def monitored_masks(masker: Masker) -> dict[str, str]:
    """Masks that are not constant, by kind, and what to call each; a common mask counts once, as ``reward``."""
    if masker.mask_on != "both":
        return {masker.mask_on: "the reward mask" if masker.mask_on == "reward" else "the KL mask"}
    if getattr(masker, "sharing", None) == "common" or masker.kind in ("activation", "data"):
        return {"reward": "the common mask"}
    return {"reward": "the reward mask", "kl": "the KL mask"}


def held_steps(config: Any, max_steps: int) -> float:
    """Steps at the start in which the mask is held."""
    return in_steps(_number(config, "mask_hold_steps"), max_steps)


def free_periods(config: Any, has_target: bool) -> tuple[float, ...]:
    """Periods at the start that ask for no sparsity yet: the mask is held, the L1 weight or the target still rises."""
    rise = _number(config, "mask_sparsity_warmup", 0.5) if has_target else _number(config, "mask_l1_warmup")
    return _number(config, "mask_hold_steps"), rise


def _number(config: Any, name: str, default: float = 0.0) -> float:
    """A setting, which an older or another config may lack."""
    value = getattr(config, name, None)
    return default if value is None else float(value)


def head_of(name: str, masks: dict[str, str]) -> str:
    """Which mask a masker's parameter belongs to; the first one for what the masks share."""
    parts = name.split(".")
    return next((mask for mask in masks if mask in parts), next(iter(masks)))


def _target(config: Any, masker: Masker, mask: str) -> float | None:
    """Share of zeros that is asked of a mask, by a controller or by the gate itself."""
    share = getattr(getattr(masker, "gate", None), "share", None)
    if share is not None:  # topk keeps this share of every response
        return 1 - float(share)
    own = getattr(config, f"mask_target_sparsity_{mask}", None)
    value = own if own is not None else getattr(config, "mask_target_sparsity", None)
    return None if value is None else float(value)


def _gate(masker: Masker) -> str | None:
    gate = getattr(masker, "gate", None)
    return gate if gate is None or isinstance(gate, str) else str(getattr(gate, "name", type(gate).__name__))


def _limit(masker: Masker) -> float | None:
    """Upper limit of the mask's values, where there is one."""
    return 1.0 if masker.kind == "activation" or _gate(masker) in BOUNDED_GATES else None
