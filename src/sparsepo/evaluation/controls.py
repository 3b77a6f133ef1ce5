"""Controls beside a mask: what a score finds that has learned nothing about preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsepo.masks import LearnedMask

from .generation import evaluating
from .token_table import Batch

UNTRAINED_STARTS = ("published", "ones")


def reference_log_probs(reference: Any, batch: Batch) -> Tensor:
    """log π_ref(· | prefix) at each target token, float32 on CPU, (2P, T, V)."""
    with evaluating(reference):
        logits = reference(**_inputs(reference, batch)).logits[:, :-1]
    return logits.float().log_softmax(-1).cpu()


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy over the last axis, nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


def random_scores(batch: Batch, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), a function of (seed, sequence, position), so that batching does not matter, (2P, T)."""
    result = torch.zeros(batch["input_ids"][:, 1:].shape)
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    for row, (ids, real) in enumerate(rows):
        tokens = [token for token, is_real in zip(ids, real, strict=True) if is_real]
        first = real.index(1) if 1 in real else 0
        numbers = np.random.default_rng([seed, *tokens]).random(max(len(tokens) - 1, 0))
        result[row, first : first + len(numbers)] = torch.from_numpy(numbers).float()
    return result


def untrained_masks(reference: Any, batch: Batch, seeds: Sequence[int], position: str = "predicting") -> list[Tensor]:
    """Masks of heads as they are drawn, before any training: what a mask finds by the luck of its start.

    Args:
        reference: the model whose states the heads read.
        batch: a collated batch.
        seeds: of the heads; even ones start as published, odd ones from ones.
        position: where the masks are read, ``predicting`` or ``token``.

    Returns:
        (2P, T) for each seed.
    """
    with evaluating(reference):
        output = reference(**_inputs(reference, batch), output_hidden_states=True)
        states = _reading_states(output.hidden_states, position)
        masks = []
        for seed in seeds:
            start = UNTRAINED_STARTS[seed % 2]
            masker = LearnedMask.for_model(reference, init=start, position=position, seed=seed).to(states[0].device)
            masks.append(masker.eval()(states).reward.cpu())
    return masks


def head_numbers(masker: LearnedMask, reference: Any, batch: Batch) -> dict[str, Tensor]:
    """What a learned mask's heads say before the gate, (2P, T) by head: without the ties that a gate makes of its zeros.

    The difference between their ranking and the mask's is what the gate's zeros hide.
    """
    with evaluating(reference):
        output = reference(**_inputs(reference, batch), output_hidden_states=True)
        states = _reading_states(output.hidden_states, masker.position)
        everywhere = torch.ones(states[0].shape[:2], dtype=torch.bool, device=states[0].device)
        rows, columns = everywhere.nonzero(as_tuple=True)
        values = masker.mixed_values(states[-masker.layers_read :], (rows, columns))
    names = ("reward", "kl") if len(values) == 2 else (next(iter(masker.heads)),)
    return {f"head_{name}": value.reshape(everywhere.shape).cpu() for name, value in zip(names, values, strict=True)}


def _reading_states(hidden_states: Sequence[Tensor], position: str) -> list[Tensor]:
    """The blocks' states where the mask of each target token is read, (2P, T, H) each."""
    columns = slice(None, -1) if position == "predicting" else slice(1, None)
    return [state[:, columns].float() for state in hidden_states[1:]]


def gradient_times_input(classifier: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """|∂ reward / ∂ embedding · embedding| of each token of a sequence, (B, S).

    Args:
        classifier: a Hugging Face sequence classifier with one output, the reward.
        input_ids, attention_mask: (B, S).

    Raises:
        ValueError: the model gives more than one number a sequence.
    """
    seen: list[Tensor] = []

    def watch(module: Any, arguments: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_(True))
        return seen[-1]

    # not inputs_embeds: a classifier finds the last real token, which it reads, by the ids
    handle = classifier.get_input_embeddings().register_forward_hook(watch)
    was_training = classifier.training
    classifier.eval()
    try:
        with torch.enable_grad():
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            reward = classifier(**_inputs(classifier, inputs)).logits
            if reward.shape[-1] != 1:
                raise ValueError(f"The classifier gives {reward.shape[-1]} numbers a sequence; a reward is one.")
            (gradient,) = torch.autograd.grad(reward.sum(), seen[0])
    finally:
        handle.remove()
        classifier.train(was_training)
    return (gradient * seen[0].detach()).sum(-1).abs().cpu()


def _inputs(model: Any, batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
