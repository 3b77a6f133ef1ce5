"""How far a policy has moved from its reference, on the policy's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .generation import Completion, Progress, evaluating


def sequence_kl(
    policy: Any,
    reference: Any,
    samples: Sequence[Completion],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """Σ_t KL(π(· | x, y_<t) ‖ π_ref(· | x, y_<t)) of each sampled completion, nats, float64 on CPU, (N,).

    With samples y drawn from the policy at temperature 1 and top_p 1, the mean over samples is an unbiased estimate of
    the sequence-level KL(π ‖ π_ref) for completions of bounded length. Each token's KL is summed over the whole
    vocabulary, so the estimate never is negative and has less variance than the log-ratio of the samples.

    Args:
        policy: a Hugging Face causal LM.
        reference: another with the same vocabulary.
        samples: completions of the policy; every token counts, the end token included.
        batch_size: completions scored together (no effect on the result).
        progress: called after each batch with (completions done, completions in all).

    Raises:
        ValueError: the two vocabularies differ in size.
    """
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt_ids) + len(samples[i].token_ids))
    result = torch.zeros(len(samples), dtype=torch.float64)
    with evaluating(policy), evaluating(reference):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            result[rows] = _batch_kl(policy, reference, [samples[i] for i in rows])
            if progress is not None:
                progress(start + len(rows), len(order))
    return result


def _batch_kl(policy: Any, reference: Any, samples: Sequence[Completion]) -> Tensor:
    width = max(len(s.prompt_ids) + len(s.token_ids) for s in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    predicts = torch.zeros(len(samples), width, dtype=torch.bool)  # positions whose next token was sampled
    for i, sample in enumerate(samples):  # padding at the right; nothing real attends to it
        end = len(sample.prompt_ids) + len(sample.token_ids)
        ids[i, :end] = torch.tensor((*sample.prompt_ids, *sample.token_ids))
        attention[i, :end] = 1
        predicts[i, len(sample.prompt_ids) - 1 : end - 1] = True
    logps = [_log_probs(model, ids, attention, predicts) for model in (policy, reference)]
    if logps[0].shape != logps[1].shape:
        raise ValueError(
            f"The policy has {logps[0].shape[-1]} vocabulary entries and the reference {logps[1].shape[-1]}; "
            "KL needs the same vocabulary."
        )
    kl = (logps[0].exp() * (logps[0] - logps[1])).sum(-1)  # (tokens,)
    return torch.zeros(predicts.shape, dtype=torch.float64).masked_scatter_(predicts, kl).sum(-1)


def _log_probs(model: Any, ids: Tensor, attention: Tensor, predicts: Tensor) -> Tensor:
    """Log-probabilities at the positions that predict a sampled token, float64 on CPU, (tokens, V)."""
    logits = model(input_ids=ids.to(model.device), attention_mask=attention.to(model.device)).logits
    return logits[predicts.to(logits.device)].double().log_softmax(-1).cpu()
