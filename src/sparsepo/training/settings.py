"""From the config's unset and explicit values to one objective and one mask, refusing what would be ignored."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sparsepo.masks import LearnedMask, Masker
from sparsepo.objectives import LINKS, Objective, get_objective, get_objective_class

from .config import SparsePOConfig
from .mask_settings import (
    GATE_SETTINGS,
    SCHEDULE_SETTINGS,
    TARGET_SETTINGS,
    gate_of,
    mask_schedule,
    refuse_constant_l1,
    target_sparsity,
)
from .schedules import MaskSchedule

ANCHOR_WITH_SPARSITY = 0.1
ANCHOR_SHARE = 0.25
# of the policy's learning rate: with the fit to log-ratios, which gives every token a target of its own, and without
MASK_LEARNING_RATE_FACTORS = {True: 25.0, False: 10.0}
LOG_RATIO_WEIGHT = 1.0

# Which mask settings each kind of mask reads, by their names in the config
_LEARNED_ONLY = (
    "mask_init",
    "mask_init_pairs",
    "mask_layers",
    "mask_map",
    "mask_map_width",
    "mask_activation",
    "mask_learning_rate",
    "mask_weight_decay",
    "mask_dropout",
    "mask_l1_reward",
    "mask_l1_kl",
    "mask_log_ratio_weight",
    "mask_max_grad_norm",
    *GATE_SETTINGS,
    *TARGET_SETTINGS,
    *SCHEDULE_SETTINGS,
)
_READ_BY: dict[str, tuple[str, ...]] = {
    "learned": ("mask_sharing", "mask_on", "mask_position", *_LEARNED_ONLY, "mask_on_failure"),
    "activation": ("mask_on", "mask_position", "mask_activation_groups", "mask_on_failure"),
    "dense": (),
    "random": ("mask_sharing", "mask_on", "mask_random_sparsity", "mask_on_failure"),
    "data": ("mask_on", "mask_on_failure"),
}
_ALL_MASK_SETTINGS = tuple(dict.fromkeys(name for names in _READ_BY.values() for name in names))
_OBJECTIVE_ONLY = ("alpha", "gamma", "lam")


@dataclass(frozen=True)
class MaskTraining:
    """How a learned mask head is trained."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    init: str
    init_pairs: int


@dataclass(frozen=True)
class ResolvedSettings:
    """What the config asks for, with nothing left unset.

    Args:
        objective: the loss.
        mask_kind: kind of mask, or None where the objective reads none.
        mask_arguments: arguments of the masker's constructor, without sizes and seed.
        mask_training: settings of the head's training, or None where the mask is not learned.
        mask_schedule: when the mask does what.
        target_sparsity: requested share of zeros by the head's name (shared, reward, kl); empty: none is asked for.
        anchor_share: share of the tokens that no mask keeps which enter the KL anchor.
        log_ratio_weight: of the fit of the mask's heads to the policy's log-ratios; 0: none.
    """

    objective: Objective
    mask_kind: str | None
    mask_arguments: dict[str, Any]
    mask_training: MaskTraining | None
    mask_schedule: MaskSchedule
    target_sparsity: dict[str, float]
    anchor_share: float = 1.0
    log_ratio_weight: float = 0.0


def resolve_settings(config: SparsePOConfig, mask: Masker | None = None) -> ResolvedSettings:
    """Resolve unset values per objective and preset.

    Args:
        config: the run's settings.
        mask: the masker that is handed to the trainer, if one is; the config must then not describe another.

    Raises:
        ValueError: a setting that the objective or the mask does not read was set.
    """
    reads_masks = get_objective_class(config.objective).reads_masks
    if mask is not None and not reads_masks:
        raise ValueError(f"objective={config.objective!r} reads no mask; leave out the trainer's mask argument.")
    if config.preset is not None and not reads_masks:
        raise ValueError(f"preset={config.preset!r} has no effect with objective={config.objective!r}; leave it unset.")
    kind = _mask_kind(config, reads_masks)
    if mask is not None:
        kind = _given_kind(config, mask)
    _refuse_unread(config, kind, mask)
    l1 = _l1_weights(config, kind, mask)
    targets = {}
    if kind == "learned" or mask is not None:
        targets = target_sparsity(config, mask)
        refuse_constant_l1(l1, gate_of(config, mask))
    fit = _log_ratio_weight(config, kind, mask)
    # the fit makes masks sparse too: a token with both masks at zero is held by nothing but the anchor
    objective = _objective(config, l1, sparse=bool(targets) or any(l1.values()) or fit > 0)
    return ResolvedSettings(
        objective=objective,
        mask_kind=kind,
        mask_arguments={} if mask is not None else _mask_arguments(config, kind, asks_target=bool(targets)),
        mask_training=_mask_training(config, fit > 0) if kind == "learned" and mask is None else None,
        mask_schedule=mask_schedule(config),
        target_sparsity=targets,
        anchor_share=_anchor_share(config, objective, fit > 0),
        log_ratio_weight=fit,
    )


def _log_ratio_weight(config: SparsePOConfig, kind: str | None, mask: Masker | None) -> float:
    weight = config.mask_log_ratio_weight
    if weight and mask is not None and not isinstance(mask, LearnedMask):
        raise ValueError(
            f"mask_log_ratio_weight={weight!r} needs a LearnedMask, got {type(mask).__name__}; leave it unset."
        )
    if kind != "learned":
        return 0.0
    if weight is None:  # a mask that was handed over, and the published setting, are trained as they say
        return LOG_RATIO_WEIGHT if mask is None and config.preset is None else 0.0
    return weight


def _anchor_share(config: SparsePOConfig, objective: Objective, fits: bool) -> float:
    share = config.kl_anchor_share
    if share is not None:
        for is_missing, reason in (
            (objective.kl_anchor == 0 and not fits, "kl_anchor=0"),
            (not objective.reads_masks, f"objective={config.objective!r}, which reads no mask: every token is kept"),
            (not config.skip_masked, "skip_masked=False, which scores every token"),
        ):
            if is_missing:
                raise ValueError(f"kl_anchor_share={share!r} has no effect with {reason}; leave it unset.")
    return ANCHOR_SHARE if share is None else share


def _mask_kind(config: SparsePOConfig, reads_masks: bool) -> str | None:
    if not reads_masks:
        if config.mask is not None:
            raise ValueError(
                f"mask={config.mask!r} has no effect with objective={config.objective!r}, which reads no mask; "
                "leave mask unset or choose objective='sparsepo'."
            )
        return None
    if config.objective == "mapo":
        if config.mask not in (None, "activation"):
            raise ValueError(
                f"mask={config.mask!r}: objective='mapo' means activation masks; choose objective='sparsepo' for others."
            )
        return "activation"
    return config.mask or "learned"


def _given_kind(config: SparsePOConfig, mask: Masker) -> str:
    if config.mask is not None:
        raise ValueError(f"mask={config.mask!r} has no effect with a mask handed to the trainer; leave it unset.")
    if config.objective == "mapo" and mask.kind != "activation":
        raise ValueError(
            f"mask={type(mask).__name__}: objective='mapo' means activation masks; choose objective='sparsepo' for others."
        )
    return mask.kind


# What still counts where the masker is built already and trainable
_TRAINING_ONLY = (
    "mask_learning_rate",
    "mask_weight_decay",
    "mask_max_grad_norm",
    "mask_l1_reward",
    "mask_l1_kl",
    "mask_log_ratio_weight",
    *TARGET_SETTINGS,
    *SCHEDULE_SETTINGS,
)


def _refuse_unread(config: SparsePOConfig, kind: str | None, mask: Masker | None) -> None:
    read = set(_READ_BY[kind]) if kind and mask is None else set()
    if mask is not None and mask.is_trainable:
        read = set(_TRAINING_ONLY)
    if mask is not None and kind != "dense":
        read.add("mask_on_failure")
    for name in _ALL_MASK_SETTINGS:
        value = getattr(config, name)
        if value is not None and name not in read:
            reason = f"mask={kind!r}" if kind else f"objective={config.objective!r}, which reads no mask"
            if mask is not None:
                reason = "a mask handed to the trainer, which brings its own"
            raise ValueError(f"{name}={value!r} has no effect with {reason}; leave it unset.")
    known = {f.name for f in fields(get_objective_class(config.objective))}
    for name in _OBJECTIVE_ONLY:
        value = getattr(config, name)
        if value is not None and name not in known:
            raise ValueError(f"{name}={value!r} has no effect with objective={config.objective!r}; leave it unset.")
    if config.mask_init_pairs is not None and config.mask_init != "mapo":
        raise ValueError(f"mask_init_pairs={config.mask_init_pairs!r} has no effect without mask_init='mapo'.")
    if config.mask_map_width is not None and _map(config) not in ("two_layer", "mlp"):
        raise ValueError(
            f"mask_map_width={config.mask_map_width!r} has no effect without mask_map='two_layer' or 'mlp'."
        )
    if config.mask_sharing is not None and config.mask_on in ("reward", "kl"):
        raise ValueError(
            f"mask_sharing={config.mask_sharing!r} has no effect with mask_on={config.mask_on!r}: there is one mask only."
        )


def _l1_weights(config: SparsePOConfig, kind: str | None, mask: Masker | None) -> dict[str, float]:
    """Effective λ_u, λ_d: a common mask would count twice, so both are halved, as the paper's code does."""
    if kind != "learned" and (mask is None or not mask.is_trainable):
        return {}
    mask_on = config.mask_on if mask is None else mask.mask_on
    sharing = config.mask_sharing if mask is None else getattr(mask, "sharing", "independent")
    weights = {"l1_reward": config.mask_l1_reward or 0.0, "l1_kl": config.mask_l1_kl or 0.0}
    for name, on in (("l1_reward", "kl"), ("l1_kl", "reward")):
        if weights[name] and mask_on == on:
            raise ValueError(f"mask_{name}={weights[name]!r} has no effect with mask_on={on!r}: that mask is constant.")
    if mask_on in (None, "both") and sharing in (None, "common"):
        weights = {name: weight / 2 for name, weight in weights.items()}
    return weights


def _link(config: SparsePOConfig) -> str:
    names = config.loss_type if isinstance(config.loss_type, (list, tuple)) else [config.loss_type]
    if len(names) != 1 or names[0] not in LINKS:
        raise ValueError(
            f"loss_type={list(names)!r}: token-level objectives take one preference link of {', '.join(LINKS)}; "
            "use TRL's DPOTrainer for the others (an SFT term is sft_weight here)."
        )
    return names[0]


def _objective(config: SparsePOConfig, l1: dict[str, float], sparse: bool) -> Objective:
    known = {f.name for f in fields(get_objective_class(config.objective))}
    settings: dict[str, Any] = {"sft_weight": config.sft_weight, **l1}
    for name in ("beta", *_OBJECTIVE_ONLY):
        if getattr(config, name) is not None:
            settings[name] = getattr(config, name)
    anchor = config.kl_anchor
    if anchor is None:
        anchor = ANCHOR_WITH_SPARSITY if sparse and config.preset is None else 0.0
    settings["kl_anchor"] = anchor
    link = _link(config)
    if "link" in known:
        settings |= {"link": link, "label_smoothing": config.label_smoothing}
    elif link != "sigmoid" or config.label_smoothing:
        raise ValueError(
            f"loss_type={link!r}, label_smoothing={config.label_smoothing!r}: objective={config.objective!r} has the "
            "sigmoid link without smoothing only."
        )
    return get_objective(config.objective, **settings)


def _mask_arguments(config: SparsePOConfig, kind: str | None, asks_target: bool) -> dict[str, Any]:
    """Constructor arguments; None values are left to the constructor, except where the library's default differs."""
    if kind is None or kind == "dense":
        return {}
    names = {
        "mask_on": config.mask_on,
        "position": config.mask_position,
        "sharing": config.mask_sharing,
        "layers": config.mask_layers,
        "map": config.mask_map,
        "map_width": config.mask_map_width,
        "dropout": config.mask_dropout,
        "activation": _mask_activation(config, asks_target),
        "gate": config.mask_gate,
        "gate_temperature": config.mask_gate_temperature,
        "topk_share": config.mask_topk_share,
        "groups": tuple(config.mask_activation_groups) if config.mask_activation_groups else None,
        "sparsity": config.mask_random_sparsity,
    }
    arguments = {name: value for name, value in names.items() if value is not None}
    if kind == "learned":
        arguments["init"] = _mask_init(config)
        arguments["map"] = _map(config)
    return arguments


def _mask_activation(config: SparsePOConfig, asks_target: bool) -> str | None:
    """Leaky where a target sparsity is asked for: with ReLU layers tokens soon tie at zero, and no threshold parts them."""
    if config.mask_activation is None and config.preset != "published" and asks_target:
        return "leaky"
    return config.mask_activation


def _map(config: SparsePOConfig) -> str:
    if config.mask_map is None and config.mask_layers != "last" and config.preset is None:
        return "mlp"
    return config.mask_map or "linear"


def _mask_init(config: SparsePOConfig) -> str:
    return config.mask_init or ("published" if config.preset == "published" else "ones")


def _mask_training(config: SparsePOConfig, fits: bool) -> MaskTraining:
    factor = 1.0 if config.preset == "published" else MASK_LEARNING_RATE_FACTORS[fits]
    rate = config.mask_learning_rate
    decay = config.mask_weight_decay
    norm = config.mask_max_grad_norm
    return MaskTraining(
        learning_rate=factor * config.learning_rate if rate is None else rate,
        weight_decay=0.01 if decay is None else decay,
        max_grad_norm=config.max_grad_norm if norm is None else norm,
        init=_mask_init(config),
        init_pairs=config.mask_init_pairs or 64,
    )
