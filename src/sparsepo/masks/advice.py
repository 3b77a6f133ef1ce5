"""Which setting to change when a mask fails, with the value that it has and the one to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Advice:
    """Sentences on what to change.

    Args:
        kind: kind of mask.
        learning_rate: of the mask head.
        init: how the head started, or None.
        l1: mask → L1 weight as set.
        target: mask → target share of zeros, or None.
        gate: name of the gate, or None where there is no choice of one.
        recovers: whether a mask of zeros still has a gradient.
    """

    kind: str
    learning_rate: float = 0.0
    init: str | None = None
    l1: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, float | None] = field(default_factory=dict)
    gate: str | None = None
    recovers: bool = False

    def on(self, name: str, mask: str) -> str:
        """What to change when ``mask`` suffers from ``name``."""
        sentence = getattr(self, f"_{name}")(mask)
        return str(sentence)

    def _lower_rate(self) -> str:
        return f"lower mask_learning_rate ({self.learning_rate:g} → {self.learning_rate / 3:.2g})"

    def _lower_pressure(self, mask: str) -> str | None:
        if self.l1.get(mask):
            return f"lower mask_l1_{mask} ({self.l1[mask]:g} → {self.l1[mask] / 3:.2g})"
        target = self.target.get(mask)
        if target and self.gate == "topk":
            return f"raise mask_topk_share ({1 - target:.2g} → {2 * (1 - target):.2g})"
        return f"lower mask_target_sparsity ({target:g} → {target / 2:.2g})" if target else None

    def _from_ones(self) -> str | None:
        return None if self.init in (None, "ones") else f"set mask_init=ones (it is {self.init})"

    def _joined(self, *parts: str | None) -> str:
        return ", or ".join(part for part in parts if part)

    def _collapse(self, mask: str) -> str:
        others = {
            "data": "Give chosen_weights and rejected_weights that keep some tokens of each response.",
            "random": "Lower mask_random_sparsity.",
            "activation": "Choose other mask_activation_groups.",
        }
        if self.kind in others:
            return others[self.kind]
        change = self._joined(self._lower_pressure(mask), self._from_ones(), self._lower_rate())
        return _sentence(change) if self.recovers else f"Start again, a mask of zeros does not come back: {change}."

    def _no_gradient(self, mask: str) -> str:
        gate = "choose another mask_gate (clamped has no gradient at either limit)" if self.gate == "clamped" else None
        change = self._joined(gate, self._from_ones(), self._lower_pressure(mask), self._lower_rate())
        return f"Start again, it cannot recover: {change}."

    def _no_sparsity(self, mask: str) -> str:
        faster = f"raise mask_learning_rate ({self.learning_rate:g} → {self.learning_rate * 3:.2g})"
        if self.target.get(mask):
            return "Lower mask_sparsity_warmup, so that the controller has more of the training."
        weight = self.l1.get(mask) or 0.0
        other = "choose another mask_gate (sigmoid makes no zeros)" if self.gate == "sigmoid" else None
        return _sentence(self._joined(other, f"raise mask_l1_{mask} ({weight:g} → {weight * 10:.2g})", faster))

    def _drift(self, mask: str) -> str:
        bounded = "set mask_gate=normalised, which holds the mean mask" if self.gate is not None else None
        return _sentence(
            self._joined(self._lower_rate(), self._lower_pressure(mask), bounded)
            + "; while it lasts, compare with runs at this effective β, not at the β that was set"
        )

    def _position(self, mask: str) -> str:
        if self.kind == "activation":
            return "Choose other mask_activation_groups, or masks that are learned (mask=learned)."
        if self.kind == "learned":
            return _sentence(
                self._joined(
                    "set mask_position=token, so that the mask knows the word", self._from_ones(), self._lower_rate()
                )
            )
        return "Use another mask: this one would do the same on any text."

    def _disagreement(self, mask: str) -> str:
        return (
            "Resume from the last checkpoint, which holds the first process's head; if it comes back, set "
            "ddp_broadcast_buffers=True and look for code that changes mask weights on some processes only."
        )

    def _flicker(self, mask: str) -> str:
        if self.kind == "learned":
            return _sentence(self._joined(self._lower_rate(), self._lower_pressure(mask)))
        return "Masks that are not trained should not change: make the masker a function of the token alone."

    def _saturated(self, mask: str) -> str:
        if self.kind == "activation":
            return "Choose other mask_activation_groups: these do not tell tokens apart."
        if self.kind != "learned":
            return "As it stands the mask only scales β: use objective=tdpo1 instead, or another mask."
        faster = f"raise mask_learning_rate ({self.learning_rate:g} → {self.learning_rate * 3:.2g})"
        if self.gate in (None, "relu"):
            return _sentence(self._joined(faster, self._from_ones()))
        zeros = None if self.target.get(mask) else "ask for zeros with mask_target_sparsity"
        other = f"choose another mask_gate (it is {self.gate})"
        return _sentence(self._joined(zeros, other, None if self.gate == "clamped" else faster))

    def _non_finite(self, mask: str) -> str:
        if self.kind == "learned":
            return _sentence(self._joined(self._lower_rate(), "lower mask_max_grad_norm", "load the models in float32"))
        return "Load the reference in float32 or bfloat16 (dtype) instead of float16, and look at its activations."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
