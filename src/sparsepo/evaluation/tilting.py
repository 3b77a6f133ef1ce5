"""The best that any policy can do: the optimum of E[reward] − KL(π ‖ π_ref)/η, from the reference's own samples.

For each prompt the optimum is the reference tilted by the reward,

    π*(y | x) ∝ π_ref(y | x) exp(η r(x, y)),

so its reward and KL are averages over samples of the reference with self-normalised weights w_i ∝ exp(η r_i):
E*[r] = Σ w_i r_i and KL(π* ‖ π_ref) = η E*[r] − log mean_i exp(η r_i). Both carry a bias of order 1/n of the n samples a
prompt; the delete-one jackknife removes it to that order. With one η for all prompts, no policy has more reward at the
same mean KL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# below this many effective samples a prompt the weights rest on a few samples, and the estimate is not to be trusted
LEAST_EFFECTIVE = 10.0


@dataclass(frozen=True)
class TiltedPoint:
    """The optimum at one η.

    Args:
        eta: inverse weight of the KL.
        reward, kl: mean over prompts, bias-corrected; nats.
        reward_se, kl_se: standard errors over prompts (the samples' share included).
        effective_samples: Kish's 1 / Σ w², mean over prompts.
    """

    eta: float
    reward: float
    kl: float
    reward_se: float
    kl_se: float
    effective_samples: float

    @property
    def is_reliable(self) -> bool:
        """Whether enough samples carry the weight."""
        return self.effective_samples >= LEAST_EFFECTIVE


class TiltedReference:
    """The frontier of optimal policies of a reference.

    Args:
        rewards: of the reference's samples, (prompts, samples a prompt), drawn at temperature 1 without truncation.

    Raises:
        ValueError: no array of at least two samples a prompt, or a reward that is not finite.
    """

    def __init__(self, rewards: ArrayLike) -> None:
        self.rewards: Array = np.asarray(rewards, dtype=np.float64)
        if self.rewards.ndim != 2 or self.rewards.shape[0] < 1 or self.rewards.shape[1] < 2:
            raise ValueError(
                f"rewards have shape {self.rewards.shape}; give (prompts, samples) with two samples a prompt or more."
            )
        if not np.isfinite(self.rewards).all():
            raise ValueError("A reward is not finite; leave its prompt out.")

    @property
    def reference_reward(self) -> float:
        """Mean reward of the reference."""
        return float(self.rewards.mean())

    def at(self, eta: float) -> TiltedPoint:
        """The optimum at ``eta`` ≥ 0."""
        reward, kl, effective = self.per_prompt(eta)
        prompts = len(reward)
        reward_se, kl_se = (
            float(values.std(ddof=1) / np.sqrt(prompts)) if prompts > 1 else float("nan") for values in (reward, kl)
        )
        return TiltedPoint(eta, float(reward.mean()), float(kl.mean()), reward_se, kl_se, float(effective.mean()))

    def per_prompt(self, eta: float) -> tuple[Array, Array, Array]:
        """Reward, KL and effective samples of each prompt, (prompts,) each."""
        if eta < 0:
            raise ValueError(f"eta={eta!r} must be at least 0.")
        r = self.rewards
        n = r.shape[1]
        shift = r.max(1, keepdims=True)
        e = np.exp(eta * (r - shift))
        total, weighted = e.sum(1, keepdims=True), (e * r).sum(1, keepdims=True)
        reward, kl = _moments(weighted, total, n, eta, shift)
        # without each sample in turn; the largest weight may be all of a prompt's total
        rest = np.maximum(total - e, np.finfo(float).tiny)
        left_reward, left_kl = _moments(weighted - e * r, rest, n - 1, eta, shift)
        effective = (total**2 / (e**2).sum(1, keepdims=True))[:, 0]

        def corrected(value: Array, left: Array) -> Array:
            return (n * value - (n - 1) * left.mean(1, keepdims=True))[:, 0]

        return corrected(reward, left_reward), corrected(kl, left_kl), effective

    def at_kl(self, kl: float) -> TiltedPoint:
        """The optimum whose mean KL is ``kl`` nats.

        Raises:
            ValueError: a KL that is negative, or larger than these samples can show.
        """
        if kl < 0:
            raise ValueError(f"kl={kl!r} must be at least 0.")
        if kl == 0:
            return self.at(0.0)
        low, high = 0.0, 1.0
        while (point := self.at(high)).kl < kl:
            if not point.is_reliable:
                raise ValueError(
                    f"kl={kl!r} is more than {self.rewards.shape[1]} samples a prompt can show (at {point.kl:.2f} "
                    f"{point.effective_samples:.1f} of them carry the weight); draw more."
                )
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle).kl < kl else (low, middle)
        return self.at((low + high) / 2)

    def resampled(self, rng: np.random.Generator) -> TiltedReference:
        """The same with prompts drawn anew with replacement, for the bootstrap."""
        return TiltedReference(self.rewards[rng.integers(len(self.rewards), size=len(self.rewards))])


def _moments(weighted: Array, total: Array, count: int, eta: float, shift: Array) -> tuple[Array, Array]:
    """(E*[r], KL) from Σ r exp(η (r − shift)) and Σ exp(η (r − shift)) over ``count`` samples."""
    reward = weighted / total
    log_mean = np.log(total / count) + eta * shift
    return reward, eta * reward - log_mean
