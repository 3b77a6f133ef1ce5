"""The reference at each response token as numbers read from a cache, instead of the reference model's hidden states.

With a frozen head, q the reference's distribution and z = scale · (W h + b) the policy's logits, the reference enters the KL
through an expectation of head rows alone:

    KL(ref‖policy) = lse(z) − lse(z_ref) − scale · (h − h_ref) · E_q[W]

(the bias cancels). The difference form keeps the digits that H(q) and log-probabilities apart would lose.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class CachedReference:
    """What a scorer reads of the reference, (R, T) or (R, T, H); values outside responses are never read.

    All float32, but ``hidden``, which has the type in which the reference ran.

    Args:
        logps: log π_ref of the target tokens, (R, T).
        log_normaliser: lse of the reference's logits, (R, T); None where no KL can be formed.
        hidden: the reference's last hidden states at the predicting positions, (R, T, H); None likewise.
        expected_weight: E_q[W], the mean row of the (frozen, shared) head under the reference's distribution, (R, T, H).
    """

    logps: Tensor
    log_normaliser: Tensor | None = None
    hidden: Tensor | None = None
    expected_weight: Tensor | None = None

    @property
    def has_kl(self) -> bool:
        """Whether the KL can be formed."""
        return self.expected_weight is not None and self.hidden is not None and self.log_normaliser is not None
