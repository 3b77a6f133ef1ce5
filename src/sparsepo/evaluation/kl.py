"""How far a policy is from its reference: on the policy's own samples, or on given responses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsepo.masks import Masker
from sparsepo.scoring.dense import block_outputs, mask_inputs, model_type_of

from .generation import Completion, Progress, evaluating

_CHUNK = 2**24  # numbers of float64 that are formed at a time: tokens × vocabulary
# Masks that follow from the text alone: those that come with data rows, or are drawn for them, say nothing of a sample
MASKS_OF_TEXTS = ("learned", "activation", "dense")


@dataclass(frozen=True)
class Divergences:
    """Sums over the tokens of each completion, nats, float64 on CPU, (N,) each.

    Args:
        kl: Σ_t KL(π ‖ π_ref) at each token, over the whole vocabulary. On samples of π its mean estimates the sequence's
            KL(π ‖ π_ref).
        log_ratio: log π(y) − log π_ref(y): the Monte-Carlo estimate of the same number, on samples of π.
        forward_kl: Σ_t KL(π_ref ‖ π) at each token, which TDPO and SparsePO penalise on the pairs' responses.
        masked_kl, masked_forward_kl: the same with each token's KL weighted by the KL mask m_d; None without a mask.
    """

    kl: Tensor
    log_ratio: Tensor
    forward_kl: Tensor
    masked_kl: Tensor | None = None
    masked_forward_kl: Tensor | None = None


def divergences(
    policy: Any,
    reference: Any,
    samples: Sequence[Completion],
    *,
    masker: Masker | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Divergences:
    """All divergences of each completion in one pass.

    Args:
        policy: a Hugging Face causal LM.
        reference: another with the same vocabulary.
        samples: completions; every token counts, the end token included.
        masker: a mask that reads the reference (``learned``, ``activation`` or ``dense``).
        batch_size: completions scored together (no effect on the result).
        progress: called after each batch with (completions done, completions in all).

    Raises:
        ValueError: the two vocabularies differ in size, or the mask belongs to rows of data and not to texts.
    """
    if masker is not None and masker.kind not in MASKS_OF_TEXTS:
        raise ValueError(f"A {masker.kind!r} mask belongs to rows of data; sampled texts have none.")
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt_ids) + len(samples[i].token_ids))
    names = ["kl", "log_ratio", "forward_kl", *(["masked_kl", "masked_forward_kl"] if masker is not None else [])]
    sums = {name: torch.zeros(len(samples), dtype=torch.float64) for name in names}
    with evaluating(policy), evaluating(reference):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for name, own in _batch_sums(policy, reference, [samples[i] for i in rows], masker).items():
                sums[name][rows] = own
            if progress is not None:
                progress(start + len(rows), len(order))
    return Divergences(**sums)


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

    Arguments and errors as in :func:`divergences`.
    """
    return divergences(policy, reference, samples, batch_size=batch_size, progress=progress).kl


def _batch_sums(policy: Any, reference: Any, samples: Sequence[Completion], masker: Masker | None) -> dict[str, Tensor]:
    batch = _collated(samples)
    predicts = batch["completion_mask"][:, 1:].bool()  # positions whose next token is the completion's
    policy_logits = _logits(policy, batch, predicts, None)[0]
    reference_logits, mask = _logits(reference, batch, predicts, masker)
    if policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"The policy has {policy_logits.shape[-1]} vocabulary entries and the reference "
            f"{reference_logits.shape[-1]}; KL needs the same vocabulary."
        )
    tokens = _token_terms(policy_logits, reference_logits, batch["input_ids"][:, 1:][predicts])
    if mask is not None:
        tokens["masked_kl"], tokens["masked_forward_kl"] = mask * tokens["kl"], mask * tokens["forward_kl"]
    zeros = torch.zeros(predicts.shape, dtype=torch.float64)
    return {name: zeros.masked_scatter(predicts, own).sum(-1) for name, own in tokens.items()}


def _token_terms(policy_logits: Tensor, reference_logits: Tensor, taken: Tensor) -> dict[str, Tensor]:
    """Per token: both KLs and the log-ratio of the token taken, float64 on CPU, (tokens,) each."""
    parts: dict[str, list[Tensor]] = {"kl": [], "log_ratio": [], "forward_kl": []}
    step = max(1, _CHUNK // policy_logits.shape[-1])
    device = policy_logits.device if policy_logits.device.type != "mps" else torch.device("cpu")  # which has no float64
    for start in range(0, len(policy_logits), step):
        own, other = (
            logits[start : start + step].to(device).double().log_softmax(-1)
            for logits in (policy_logits, reference_logits)
        )
        difference = own - other
        # entries that both give no probability (padding of the vocabulary) are −∞ twice
        difference = torch.where(own == other, torch.zeros_like(difference), difference)
        parts["kl"].append(_expectation(own.exp(), difference))
        parts["forward_kl"].append(_expectation(other.exp(), -difference))
        ids = taken[start : start + step, None].to(device)
        parts["log_ratio"].append(difference.gather(-1, ids)[:, 0].cpu())
    return {name: torch.cat(own) if own else torch.zeros(0, dtype=torch.float64) for name, own in parts.items()}


def _expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Σ_v p_v x_v on CPU; what has no probability does not count, whatever its value."""
    return torch.where(probabilities > 0, probabilities * values, torch.zeros_like(values)).sum(-1).cpu()


def _collated(samples: Sequence[Completion]) -> dict[str, Tensor]:
    """Right-padded sequences, their real tokens and those of the completions, (B, S) each."""
    width = max(len(s.prompt_ids) + len(s.token_ids) for s in samples)
    batch = {
        name: torch.zeros(len(samples), width, dtype=torch.long)
        for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for i, sample in enumerate(samples):  # padding at the right; nothing real attends to it
        end = len(sample.prompt_ids) + len(sample.token_ids)
        batch["input_ids"][i, :end] = torch.tensor((*sample.prompt_ids, *sample.token_ids))
        batch["attention_mask"][i, :end] = 1
        batch["completion_mask"][i, len(sample.prompt_ids) : end] = 1
    return batch


def _logits(
    model: Any, batch: dict[str, Tensor], predicts: Tensor, masker: Masker | None
) -> tuple[Tensor, Tensor | None]:
    """Logits at the positions that predict a completion's token, (tokens, V), and the KL mask there, float64 on CPU."""
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    states = masker is not None and masker.needs_hidden_states
    with masker.tap(model) if masker is not None else nullcontext() as activations:
        output = model(**inputs, output_hidden_states=states)
    logits = output.logits[:, :-1][predicts.to(output.logits.device)]
    if masker is None:
        return logits, None
    blocks = None
    if states:
        blocks = [own.float() for own in block_outputs(output.hidden_states, model_type=model_type_of(model))]
    on_device = {name: own.to(logits.device) for name, own in batch.items()}
    masks = masker.to(logits.device).eval().token_masks(mask_inputs(on_device, None, blocks, activations))
    return logits, masks.kl[predicts.to(logits.device)].double().cpu()
