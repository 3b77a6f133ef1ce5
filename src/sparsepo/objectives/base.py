"""What every objective shares: its settings, what it needs computed, and the two extra terms open to all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from .links import LINKS, preference_link
from .scores import PairLoss, PairScores, TokenScores


def check_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above zero."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number above 0.")


def check_nonnegative(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number of at least zero."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number of at least 0.")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A map from per-token scores of pairs to un-reduced per-pair losses and rewards.

    A subclass writes :meth:`sides`. Calling the objective adds the two terms that are open to all:

    - ``sft_weight`` · (−1/|y_w|) Σ_{t∈y_w} log π(y_t): negative log-likelihood of the chosen response, per token;
    - ``kl_anchor`` · Σ_{t∈y_w∪y_l} w_t k_t: KL(π_ref‖π) over ALL response tokens, masked or not (w = ``anchor_weight``).

    Both stand outside β and outside the rewards. Each pair's loss depends on that pair alone.

    Args:
        beta: β > 0, strength of the implicit reward.
        sft_weight: weight of the likelihood term, ≥ 0.
        kl_anchor: λ ≥ 0, weight of the KL anchor.
    """

    name: ClassVar[str]
    display_name: ClassVar[str]
    paper: ClassVar[tuple[str, str]]  # title, arXiv number
    default_beta: ClassVar[float] = 0.1
    links: ClassVar[tuple[str, ...]] = ("sigmoid",)

    beta: float
    sft_weight: float = 0.0
    kl_anchor: float = 0.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        check_nonnegative("sft_weight", self.sft_weight)
        check_nonnegative("kl_anchor", self.kl_anchor)

    # What must be computed. Properties, because settings decide: DPO with an anchor needs the KL.
    @property
    def needs_reference(self) -> bool:
        """Whether log π_ref of the response tokens is read."""
        return self.reads_reference or self.needs_kl

    @property
    def needs_kl(self) -> bool:
        """Whether the full-vocabulary KL is read."""
        return self.reads_kl or self.kl_anchor > 0

    @property
    def needs_masks(self) -> bool:
        """Whether token masks are read."""
        return self.reads_masks

    # Whether ∂loss/∂(log π, k) of a pair keeps its direction: one factor a pair times what it is at policy = reference
    fixed_direction: ClassVar[bool] = True

    @property
    def has_fixed_direction(self) -> bool:
        """Whether a pair's gradient over its tokens is known up to one factor before the scores are.

        Every margin that is linear in log π and k has it, whatever the link; the SFT term and the anchor add a part of
        their own. A scorer may then form gradients row by row.
        """
        return self.fixed_direction and self.sft_weight == 0 and self.kl_anchor == 0

    reads_reference: ClassVar[bool] = True
    reads_kl: ClassVar[bool] = False
    reads_masks: ClassVar[bool] = False

    # Tokens that the loss reads although their masks are zero: "none", "chosen" (SFT term) or "all"
    @property
    def declared_tokens(self) -> str:
        """Response tokens that count whatever the masks say: ``none``, ``chosen`` or ``all``.

        The KL anchor reads all tokens too, but a scorer may hand it a weighted sample (``anchor_weight``).
        """
        if not self.reads_masks:
            return "all"
        return "chosen" if self.sft_weight > 0 else "none"

    def sides(self, scores: PairScores) -> PairLoss:
        """Loss and rewards of each pair, without the SFT term and the anchor."""
        raise NotImplementedError

    def token_rewards(self, side: TokenScores, chosen: bool) -> Tensor:
        """What each response token adds to the implicit reward of its side, (B, T); their sum is the reward.

        Raises:
            NotImplementedError: the objective's reward is no sum over tokens, or it does not say so.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what each token adds to its reward.")

    def __call__(self, scores: PairScores) -> PairLoss:
        result = self.sides(scores)
        loss = result.loss
        if self.sft_weight > 0:
            chosen = scores.chosen
            loss = loss - self.sft_weight * chosen.total(chosen.policy_logps) / chosen.lengths().clamp(min=1)
        if self.kl_anchor > 0:
            loss = loss + self.kl_anchor * (anchor(scores.chosen) + anchor(scores.rejected))
        return PairLoss(loss, result.chosen_rewards.detach(), result.rejected_rewards.detach())

    def settings(self) -> dict[str, float | str]:
        """All settings by name, for model cards and reports."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def anchor(side: TokenScores) -> Tensor:
    """Σ_t w_t k_t over the response tokens of one side, (B,)."""
    return side.total(side.require_kl(), side.anchor_weight)


@dataclass(frozen=True, kw_only=True)
class LinkedObjective(Objective):
    """An objective whose pair enters through one score a side: loss = link(β, S_w, S_l).

    A subclass writes :meth:`token_score` or :meth:`score`; rewards are β S, so ``rewards/margins`` is the margin inside the
    loss.

    Args:
        link: ``sigmoid`` (default), ``hinge``, ``ipo`` or ``robust``.
        label_smoothing: ε, probability that a label is flipped, [0, 0.5); for ``sigmoid`` and ``robust``.
    """

    links: ClassVar[tuple[str, ...]] = LINKS

    link: str = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.link not in self.links:
            raise ValueError(f"link={self.link!r} is not open to {self.name!r}; choose one of {', '.join(self.links)}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={self.label_smoothing!r} must lie in [0, 0.5).")
        if self.label_smoothing and self.link in ("hinge", "ipo"):
            raise ValueError(
                f"label_smoothing={self.label_smoothing!r} has no meaning for link={self.link!r}; "
                "set it to 0 or choose link='sigmoid' or 'robust'."
            )

    def token_score(self, side: TokenScores, chosen: bool) -> Tensor:
        """What each token adds to S, (B, T); values outside the response are not read."""
        raise NotImplementedError(f"{type(self).__name__} does not say what each token adds to its score.")

    def score(self, side: TokenScores, chosen: bool) -> Tensor:
        """S of one side, before β, (B,)."""
        return side.total(self.token_score(side, chosen))

    def token_rewards(self, side: TokenScores, chosen: bool) -> Tensor:
        return self.beta * self.token_score(side, chosen)

    def sides(self, scores: PairScores) -> PairLoss:
        chosen, rejected = self.score(scores.chosen, chosen=True), self.score(scores.rejected, chosen=False)
        link = preference_link(self.link, self.beta, self.label_smoothing)
        loss = link(chosen, rejected, scores.chosen.lengths(), scores.rejected.lengths())
        return PairLoss(loss, self.beta * chosen, self.beta * rejected)
