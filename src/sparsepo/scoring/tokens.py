"""Per-token log-probabilities and KL from logits: the one place where these formulas stand in dense form."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(z)[y]: logits (..., V), targets (...) → (...)."""
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_kl(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """KL(π_ref‖π_θ) = Σ_v π_ref(v) (log π_ref(v) − log π_θ(v)) over the whole vocabulary, ≥ 0 up to rounding,
    (..., V) → (...).

    arXiv 2404.11999 eq. 8. Gradient flows through the policy's logits only if the reference's need none.
    """
    reference = reference_logits.log_softmax(-1)
    # one difference of log-probabilities, so that near-equal models lose no digits to cancellation
    return (reference.exp() * (reference - policy_logits.log_softmax(-1))).sum(-1)


def cached_kl(
    policy_logits: Tensor,
    hidden: Tensor,
    scale: float,
    log_normaliser: Tensor,
    ref_hidden: Tensor,
    expected_weight: Tensor,
) -> Tensor:
    """KL(π_ref‖π_θ) of a frozen, shared head from cached numbers; see :mod:`sparsepo.scoring.cached`.

    policy_logits (N, V), hidden (N, H), log_normaliser (N,), ref_hidden (N, H), expected_weight (N, H) → (N,)
    """
    moved = hidden.to(expected_weight.dtype) - ref_hidden
    return policy_logits.logsumexp(-1) - log_normaliser - scale * (moved * expected_weight).sum(-1)


def token_statistics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Entropy (nats), mean logit over the vocabulary, and whether the target is the most likely token: (...) each."""
    with torch.no_grad():
        logps = logits.detach().log_softmax(-1)
        return {
            "entropy": -(logps.exp() * logps).sum(-1),
            "mean_logits": logits.detach().mean(-1),
            "is_top1": (logps.argmax(-1) == targets).float(),
        }
