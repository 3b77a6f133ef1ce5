"""Gates: from a head's number x at every response token to the mask, and so what makes a mask sparse.

x is the head's mixed value Σ_l v_l a_l, shifted and scaled by what the sparsity controller has set (see
:mod:`sparsepo.masks.controller`; by default x is that value itself). A head that starts from ones has x ≈ 1, one that is
fitted to activation masks has x in [0, 1]; every gate is laid out for that range, with 1 open and 0 shut.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .responses import Responses
from .simplex import shifted_power
from .validation import check_positive, check_share

LOGIT_SLOPE = (
    4.0  # of gates that squash: the logit is 4 (x − ½), so that x = 1 is σ(2) = .88 open and x = 0 as much shut
)
# of hard-concrete: the sample is stretched from (0, 1) to (γ, ζ) and clamped, which makes 0 and 1 exact (arXiv 1712.01312)
STRETCH = (-0.1, 1.1)


class Gate:
    """One way from x to the mask. A subclass states its properties and writes :meth:`__call__`.

    Args:
        temperature: of gates that have a ``default_temperature``; None: that.
        share: of gates that have a ``default_share``; None: that.

    Raises:
        ValueError: a setting that the gate does not read, or one out of range.
    """

    name: ClassVar[str]
    default_temperature: ClassVar[float | None] = None
    default_share: ClassVar[float | None] = None
    # Whether a mask at zero has zero gradient too, so that a scorer may leave the token out
    flat_at_zero: ClassVar[bool] = True
    # Whether training draws random numbers; evaluation never does
    stochastic: ClassVar[bool] = False
    # Whether the mask is 1 on average over every response (that keeps a token), so that it never rescales β
    mean_one: ClassVar[bool] = False
    # At or below this x the mask is exactly zero in evaluation; None: no such point, so no controller can set sparsity
    closes_at: float | None = None

    def __init__(self, temperature: float | None = None, share: float | None = None) -> None:
        for setting, value, default in (
            ("gate_temperature", temperature, self.default_temperature),
            ("topk_share", share, self.default_share),
        ):
            if value is not None and default is None:
                readers = ", ".join(g.name for g in GATES.values() if g.has(setting))
                raise ValueError(f"{setting}={value!r} has no effect with gate={self.name!r}; it belongs to {readers}.")
        if temperature is not None:
            check_positive("gate_temperature", temperature)
        if share is not None:
            check_share("topk_share", share)
        self.temperature = self.default_temperature if temperature is None else float(temperature)
        self.share = self.default_share if share is None else float(share)

    @classmethod
    def has(cls, setting: str) -> bool:
        """Whether the gate reads ``gate_temperature`` or ``topk_share``."""
        return (cls.default_temperature if setting == "gate_temperature" else cls.default_share) is not None

    def settings(self) -> dict[str, Any]:
        """Constructor arguments of a mask that rebuild this gate; None where the gate does not read one."""
        return {"gate": self.name, "gate_temperature": self.temperature, "topk_share": self.share}

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        """The mask, ≥ 0, (N,).

        Args:
            x: (N,), float32 or float64.
            responses: which response each token belongs to.
            uniform: numbers in [0, 1) for a stochastic gate in training, (N,); None: evaluation.
        """
        raise NotImplementedError

    def size(self, x: Tensor) -> Tensor | None:
        """What an L1 weight counts at each token instead of the mask, (N,); None: the mask itself."""
        return None

    @property
    def _tau(self) -> float:
        assert self.temperature is not None
        return self.temperature


class Relu(Gate):
    """m = max(x, 0), the paper's. Range [0, ∞). Sparse where x ≤ 0: an L1 weight or the controller drives x there. Flat."""

    name = "relu"
    closes_at = 0.0

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        return torch.relu(x)


class Clamped(Gate):
    """m = min(max(x, 0), 1). Range [0, 1]. Sparse as ReLU, and as flat at one as at zero: tokens above tie."""

    name = "clamped"
    closes_at = 0.0

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        return x.clamp(0.0, 1.0)


class Normalised(Gate):
    """m = max(x, 0) over its mean in the response. Range [0, T], mean 1: the mask says where β acts, not how strongly.

    Sparse where x ≤ 0. Flat at zero: such a token adds nothing to the mean either. A response in which no token is above
    zero keeps none (all zeros, no gradient); it counts in ``mask/*/dead``.
    """

    name = "normalised"
    mean_one = True
    closes_at = 0.0

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        values = responses.spread(torch.relu(x), 0.0)
        total = values.sum(-1, keepdim=True)
        total = torch.where(total > 0, total, torch.ones_like(total))
        return responses.gather(values / total * responses.counted(values))


class Sigmoid(Gate):
    """m = σ(4 (x − ½) / τ). Range (0, 1). Dense: the control that shows what sparsity itself adds."""

    name = "sigmoid"
    default_temperature = 1.0

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        return torch.sigmoid(_logit(x) / self._tau)


class Binary(Gate):
    """m = 1[x > ½], with the gradient of σ(4 (x − ½) / τ) (straight-through, arXiv 1308.3432). Range {0, 1}.

    Not flat: a token at zero still has a gradient, so it must be scored, and it can come back.
    """

    name = "binary"
    default_temperature = 1.0
    flat_at_zero = False
    closes_at = 0.5

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        return _straight_through(_logit(x), self._tau)


class HardConcrete(Gate):
    """A stretched and clamped binary concrete sample (Louizos et al. 2018, arXiv 1712.01312). Range [0, 1].

    In training s = σ((4 (x − ½) + logistic noise) / τ), in evaluation σ(4 (x − ½)); m = min(max(1.2 s − 0.1, 0), 1).
    Sparse by its L0 penalty: an L1 weight counts the probability that the token is kept, σ(4 (x − ½) − τ log(−γ/ζ)),
    whose gradient reaches shut tokens as well. The mask itself is flat where it is clamped.
    """

    name = "hard_concrete"
    default_temperature = 2 / 3
    stochastic = True
    # σ(logit) (ζ − γ) + γ = 0 at logit = log(−γ/ζ)
    closes_at = 0.5 + math.log(-STRETCH[0] / STRETCH[1]) / LOGIT_SLOPE

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        low, high = STRETCH
        sample = torch.sigmoid(_logit(x) if uniform is None else (_logit(x) + _logistic(uniform, x)) / self._tau)
        return (sample * (high - low) + low).clamp(0.0, 1.0)

    def size(self, x: Tensor) -> Tensor:
        """Probability that the token is kept, (N,): the summand of the expected L0 norm."""
        low, high = STRETCH
        return torch.sigmoid(_logit(x) - self._tau * math.log(-low / high))


class GumbelSigmoid(Gate):
    """m = 1[4 (x − ½) + logistic noise > 0] in training, with the gradient of the sample's σ(· / τ); 1[x > ½] in
    evaluation (arXiv 1611.01144, straight-through). Range {0, 1}. Not flat."""

    name = "gumbel_sigmoid"
    default_temperature = 1.0
    flat_at_zero = False
    stochastic = True
    closes_at = 0.5

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        noise = 0.0 if uniform is None else _logistic(uniform, x)
        return _straight_through(_logit(x) + noise, self._tau)


class TopK(Gate):
    """m = max(x, 0) at the k = max(1, ⌊share · T + ½⌋) largest x of the response, 0 elsewhere; of equal ones the first.

    Range [0, ∞). The share of tokens kept is set, not learned. Flat at zero: a token that is left out gets no gradient of
    its own and returns only as the head, which all tokens share, changes.
    """

    name = "topk"
    default_share = 0.2

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        assert self.share is not None
        values = responses.spread(x.detach(), -math.inf)
        number = (responses.counted(values) * self.share + 0.5).floor().clamp(min=1)
        rank = values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return torch.relu(x) * responses.gather(rank < number)


class Sparsemax(Gate):
    """T · sparsemax(x / (τ T)) = max(x/τ − θ, 0) with mean 1 over the response. Range [0, T].

    Sparse once x spreads by more than about τ within a response; the sharper, the sparser. Flat at zero.
    """

    name = "sparsemax"
    default_temperature = 0.1
    mean_one = True
    power: ClassVar[int] = 1

    def __call__(self, x: Tensor, responses: Responses, uniform: Tensor | None = None) -> Tensor:
        values = responses.spread(x / self._tau, -math.inf)
        return responses.gather(shifted_power(values, responses.counted(values), self.power))


class Entmax(Sparsemax):
    """T · entmax_1.5(2 x / (τ √T)) = max(x/τ − θ, 0)² with mean 1 over the response: smoother than sparsemax, less sparse
    at the same τ. Flat at zero."""

    name = "entmax"
    power = 2


def _logit(x: Tensor) -> Tensor:
    return LOGIT_SLOPE * (x - 0.5)


def _logistic(uniform: Tensor, like: Tensor) -> Tensor:
    """Logistic noise from numbers on the grid [0, 1) of 2⁻²⁴, moved to its cells' middles, so that none is infinite."""
    half = 2.0**-25
    uniform = uniform.to(like.dtype)
    return torch.log(uniform + half) - torch.log((1 - uniform) - half)


def _straight_through(logit: Tensor, temperature: float) -> Tensor:
    """1[logit > 0] with the gradient of σ(logit / τ)."""
    soft = torch.sigmoid(logit / temperature)
    hard = (logit > 0).to(logit.dtype)
    return hard + (soft - soft.detach())


GATES: dict[str, type[Gate]] = {
    gate.name: gate
    for gate in (
        Relu, Clamped, Normalised, Sigmoid, Binary, HardConcrete, GumbelSigmoid, TopK, Sparsemax, Entmax,
    )
}  # fmt: skip


def build_gate(name: str, temperature: float | None = None, share: float | None = None) -> Gate:
    """A gate by its name, with the settings that it reads. Raises ``ValueError`` naming what is wrong."""
    if name not in GATES:
        raise ValueError(f"gate={name!r} is unknown; choose one of {', '.join(GATES)}.")
    return GATES[name](temperature, share)
