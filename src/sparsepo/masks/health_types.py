"""What the judgement of a mask's health is made of: limits, what the run asks, readings and findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .advice import Advice
from .moments import MaskSums

# What a trained mask can suffer from, and what also happens to one that is only computed
SIGNATURES = (
    "collapse",
    "no_gradient",
    "no_sparsity",
    "drift",
    "position",
    "disagreement",
    "flicker",
    "saturated",
    "non_finite",
)
COMPUTED_SIGNATURES = ("collapse", "position", "flicker", "saturated", "non_finite")
GIVEN_SIGNATURES = ("collapse", "non_finite")  # weights that came with the data are the user's own choice
PROCESSES = "processes"  # the place of a mask's name in findings that concern the whole head


@dataclass(frozen=True)
class HealthLimits:
    """Where a failure begins.

    Args:
        collapsed_zeros: share of zero masks.
        collapsed_responses: share of responses in which no token is kept.
        sparsity_after: share of the training after which asked-for sparsity should show.
        least_sparsity: share of zeros that counts as some where an L1 weight asks.
        target_share: part of a target share of zeros that counts as some.
        drift: factor by which the effective β may grow or shrink.
        explained: adjusted R² by position, length or response.
        least_spread: standard deviation over mean below which there is nothing to explain.
        least_tokens: tokens that a judgement on position needs.
        saturated_after: share of the training after which a mask should no longer be as uniform as some starts are.
        no_spread: standard deviation over mean of a mask without differences.
        at_limit: share of masks at the gate's upper limit.
        rank_correlation, kept_overlap: between two evaluations.
        patience: readings in a row that it takes to believe a failure.
        patience_to_clear: the same for its end.
    """

    collapsed_zeros: float = 0.99
    collapsed_responses: float = 0.9
    sparsity_after: float = 0.5
    least_sparsity: float = 0.01
    target_share: float = 0.25
    drift: float = 3.0
    explained: float = 0.9
    least_spread: float = 0.01
    least_tokens: int = 1024
    saturated_after: float = 0.25
    no_spread: float = 1e-4
    at_limit: float = 0.99
    rank_correlation: float = 0.3
    kept_overlap: float = 0.3
    patience: int = 2
    patience_to_clear: int = 4


def in_steps(period: float, max_steps: int) -> float:
    """A number of steps, given as such or (below 1) as a share of the training."""
    return period * max_steps if period < 1 else period


@dataclass(frozen=True)
class HealthProfile:
    """What the run asks of its masks.

    Args:
        masks: monitored masks, ``reward`` or ``kl`` → how to call them in a sentence.
        signatures: failures to look for, of ``SIGNATURES``.
        beta: the objective's β.
        advice: which settings to name.
        l1: mask → L1 weight as set; 0 if none.
        target: mask → target share of zeros, or None.
        free: periods at the start that ask for no sparsity yet (held masks, warm-ups): steps, or below 1 shares of the
            training.
        limit: upper limit of the gate, or None.
    """

    masks: Mapping[str, str]
    signatures: tuple[str, ...]
    beta: float
    advice: Advice
    l1: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, float | None] = field(default_factory=dict)
    free: tuple[float, ...] = ()
    limit: float | None = None

    def free_steps(self, max_steps: int) -> float:
        """Steps at the start that ask for no sparsity yet."""
        return sum(in_steps(period, max_steps) for period in self.free)

    def asks_sparsity(self, mask: str) -> bool:
        """Whether an L1 weight or a target asks this mask for zeros."""
        return bool(self.l1.get(mask)) or bool(self.target.get(mask))


@dataclass(frozen=True)
class Reading:
    """What was measured since the last reading, over all processes.

    Args:
        step, max_steps: of the run.
        sums: mask → its sums.
        gradient: mask → largest absolute gradient of its head in these steps; empty where none is trained.
        held: whether the head was not to move in some of these steps.
        log_ratio: largest |log-ratio| of a response token: 0 while policy and reference are the same.
        differing: processes whose head differs from the first one's.
    """

    step: int
    max_steps: int
    sums: Mapping[str, MaskSums]
    gradient: Mapping[str, float] = field(default_factory=dict)
    held: bool = False
    log_ratio: float = 0.0
    differing: tuple[int, ...] = ()


@dataclass
class Finding:
    """A failure that is being seen.

    Args:
        name: of ``SIGNATURES``.
        mask: ``reward``, ``kl``, or ``processes``.
        since: step of the first reading that showed it.
        message: what was seen when it was believed, since when, and what to change.
    """

    name: str
    mask: str
    since: int
    message: str
