"""What a cache keeps at each response token, and how many bytes that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsepo.masks import ActivationMask, LearnedMask, Masker
from sparsepo.scoring import LMHead

from .fingerprint import hash_tensors

GIB = 1 << 30
# How the KL of a token is formed
NO_KL, EXPECTATION, HIDDEN = "none", "expectation", "hidden"


@dataclass(frozen=True)
class HeadForm:
    """The heads of policy and reference, as far as the cache depends on them.

    Args:
        is_shared: the reference reads the policy's own head, which nothing trains (LoRA).
        is_capped: the logits have a soft-cap.
        hidden_size: H of the head.
        nbytes: of its weight and bias.
        itemsize: bytes of a number of the reference.
    """

    is_shared: bool
    is_capped: bool
    hidden_size: int
    nbytes: int
    itemsize: int


@dataclass(frozen=True)
class CachePlan:
    """Which numbers are kept at a response token.

    Args:
        kl: ``none``: no KL is formed; ``expectation``: log-normaliser, last hidden state and E_q[W] (frozen, shared head);
            ``hidden``: the last hidden state, which goes through the reference's head in every step.
        head: the heads.
        layers: blocks whose states a learned mask reads; 0: none.
        mask_hidden_size: width of those states.
        position: where they are read, ``predicting`` or ``token``.
        masks: names of finished masks that are kept instead: of ``mask``, or ``reward_mask`` and ``kl_mask``.
        mask_description: what the finished masks depend on, or None.
    """

    kl: str
    head: HeadForm
    layers: int = 0
    mask_hidden_size: int = 0
    position: str = "predicting"
    masks: tuple[str, ...] = ()
    mask_description: dict[str, Any] | None = None

    @property
    def needs_head(self) -> bool:
        """Whether a copy of the reference's head must be kept: it is read in every step and is not the policy's."""
        return self.kl == HIDDEN and not self.head.is_shared

    def token_bytes(self) -> dict[str, int]:
        """Bytes of a response token by what is kept (the numbers of the scorer as float32)."""
        own, wide = self.head.itemsize, max(4, self.head.itemsize)
        sizes = {"logps": wide}
        if self.kl != NO_KL:
            sizes["hidden"] = own * self.head.hidden_size
        if self.kl == EXPECTATION:
            sizes |= {"log_normaliser": wide, "expected_weight": wide * self.head.hidden_size}
        if self.layers:
            sizes["states"] = own * self.layers * self.mask_hidden_size
        return sizes | dict.fromkeys(self.masks, 4)

    def fields(self) -> dict[str, tuple[int, ...]]:
        """Name of each kept array → its shape behind the token axis."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.token_bytes():
            if name in ("hidden", "expected_weight"):
                shapes[name] = (self.head.hidden_size,)
            elif name == "states":
                shapes[name] = (self.layers, self.mask_hidden_size)
            else:
                shapes[name] = ()
        return shapes

    def description(self) -> dict[str, Any]:
        """What distinguishes this plan's numbers from another's, JSON types only."""
        described: dict[str, Any] = {"kl": self.kl, "fields": {name: list(s) for name, s in self.fields().items()}}
        if self.layers:
            described["position"] = self.position
        return described | ({"mask": self.mask_description} if self.masks else {})


def plan_cache(masker: Masker | None, need_kl: bool, head: HeadForm) -> CachePlan:
    """The plan of a run.

    Args:
        masker: the run's masker, or None where no mask is read.
        need_kl: whether the KL is formed on these rows.
        head: the heads.

    Raises:
        ValueError: the masker reads something of the reference that the cache does not know.
    """
    kl = NO_KL
    if need_kl:
        kl = EXPECTATION if head.is_shared and not head.is_capped else HIDDEN
    if masker is None or not _reads_reference(masker):
        return CachePlan(kl, head)
    if isinstance(masker, LearnedMask) and masker.is_trainable:
        return CachePlan(kl, head, masker.layers_read, masker.hidden_size, masker.position)
    if isinstance(masker, ActivationMask):
        return CachePlan(kl, head, masks=("mask",), mask_description={"kind": masker.kind, **masker.settings()})
    if isinstance(masker, LearnedMask):
        described = {"kind": masker.kind, **masker.settings(), "weights": hash_tensors(masker.state_dict().items())}
        return CachePlan(kl, head, masks=("reward_mask", "kl_mask"), mask_description=described)
    raise ValueError(
        f"precompute_ref=True cannot cache what the mask {type(masker).__name__} reads of the reference: only learned and "
        "activation masks say at which tokens they read it. Leave precompute_ref False."
    )


def _reads_reference(masker: Masker) -> bool:
    return masker.needs_hidden_states or type(masker).tap is not Masker.tap


def check_estimate(plans: dict[str, tuple[CachePlan, int]], limit_gib: float) -> float:
    """Refuse a cache over the limit.

    Args:
        plans: split → its plan and its number of response tokens.
        limit_gib: the limit, GiB.

    Returns:
        The estimated size, GiB.

    Raises:
        ValueError: the estimate is above the limit; names what dominates it and the mends.
    """
    parts: dict[str, int] = {}
    for plan, tokens in plans.values():
        for name, size in plan.token_bytes().items():
            parts[name] = parts.get(name, 0) + size * tokens
    total = sum(parts.values()) + max((plan.head.nbytes for plan, _ in plans.values() if plan.needs_head), default=0)
    if total <= limit_gib * GIB:
        return total / GIB
    splits = ", ".join(f"{name}: {tokens:,} tokens" for name, (_, tokens) in plans.items())
    largest = max(parts, key=lambda name: parts[name])
    plan = next(plan for plan, _ in plans.values() if largest in plan.token_bytes())
    mends = ["raise precompute_ref_max_gib", "cut responses by a smaller max_length", "leave precompute_ref False"]
    reason = {
        "states": f"the states of {plan.layers} block(s) that the learned mask reads",
        "hidden": "the reference's last hidden states, from which the KL is formed",
        "expected_weight": "E_q[W], from which the KL is formed",
    }.get(largest, largest)
    if largest == "states" and plan.layers > 1:
        mends.insert(0, "read the last block alone (mask_layers='last')")
    raise ValueError(
        f"precompute_ref=True would store {total / GIB:.3g} GiB ({splits}), above precompute_ref_max_gib={limit_gib:g}. "
        f"{parts[largest] / total:.0%} of it are {reason}, {plan.token_bytes()[largest]:,} bytes a token. "
        f"Mends: {'; '.join(mends)}."
    )


def head_form(head: LMHead, is_shared: bool, itemsize: int) -> HeadForm:
    """The form of a reference's head, whose numbers take so many bytes each."""
    count = head.weight.numel() + (0 if head.bias is None else head.bias.numel())
    return HeadForm(is_shared, head.softcap is not None, head.weight.shape[1], count * itemsize, itemsize)
