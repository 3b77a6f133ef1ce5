"""Attention over rows [prompt | chosen | rejected] in two calls: prompts, and each response over its prompt and itself.

One call over such a row computes scores of every token with every other and masks most of them away: each response with the
other, prompts with what follows. Two calls leave these out, inside one forward of the model, so that gradient checkpointing
and hooks work as ever. The row's mask carries how to split it; transformers' ``sdpa`` looks for that and otherwise does what
it always did. Masks of both calls are cut out of the row's, windows included: a model that changes its mask, or does not
ask the interface for its attention, computes the whole row to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MARK = "_sparsepo_split"
# Queries of a response at a time on a CPU: each block leaves out the keys behind it, which one call would mask. On GPUs
# another launch costs more than that.
_QUERIES = 128


@dataclass
class SplitMask:
    """The two masks of a row's mask, additive; prompts of A tokens, responses of B.

    Args:
        prompt: (P, 1, A, A), or None where prompts are plainly causal.
        responses: of both responses over prompt and themselves, (2P, 1, B, A + B), neighbours of a pair.
    """

    prompt: Tensor | None
    responses: Tensor


def mark_split(mask: Tensor, prompt_width: int, prompts_are_causal: bool) -> None:
    """Let a row's mask, (P, 1, A + 2B, A + 2B), say how attention may split it."""
    width = prompt_width
    pairs, length = len(mask), mask.shape[-1]
    tail = (length - width) // 2
    sides = []
    for start in (width, width + tail):
        rows = mask[:, :, start : start + tail]
        sides.append(torch.cat([rows[..., :width], rows[..., start : start + tail]], -1))
    responses = torch.stack(sides, 1).reshape(2 * pairs, 1, tail, width + tail)
    prompt = None if prompts_are_causal else mask[:, :, :width, :width].contiguous()
    setattr(mask, _MARK, SplitMask(prompt, responses))
    _teach_sdpa()


def _teach_sdpa() -> None:
    """Put the split in front of transformers' ``sdpa``, once. Masks without the mark go straight on."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    whole = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if getattr(whole, _MARK, False):
        return

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        split = getattr(attention_mask, _MARK, None)
        if split is None or kwargs.get("position_bias") is not None or kwargs.get("cache") is not None:
            return whole(module, query, key, value, attention_mask, **kwargs)
        return _two_calls(whole, module, (query, key, value), split, kwargs)

    setattr(attention, _MARK, True)
    AttentionInterface.register("sdpa", attention)  # what a user registers later still wins


def _two_calls(
    whole: Any, module: Any, states: tuple[Tensor, Tensor, Tensor], split: SplitMask, kwargs: dict[str, Any]
) -> tuple[Tensor, None]:
    tail = split.responses.shape[2]
    width = split.responses.shape[3] - tail
    pairs = len(states[0])

    def tails(values: Tensor) -> Tensor:  # (P, heads, A + 2B, D) → (2P, heads, B, D)
        heads, size = values.shape[1], values.shape[3]
        return values[:, :, width:].unflatten(2, (2, tail)).transpose(1, 2).reshape(2 * pairs, heads, tail, size)

    prompts = [values[:, :, :width] for values in states]
    of_prompts, _ = whole(
        module, *prompts, split.prompt, **{**kwargs, "is_causal": True if split.prompt is None else None}
    )
    seen = [
        torch.cat([prompt.repeat_interleave(2, 0), tails(values)], 2)
        for prompt, values in zip(prompts[1:], states[1:], strict=True)
    ]
    queries, size = tails(states[0]), _QUERIES if states[0].device.type == "cpu" else tail
    parts = []
    for first in range(0, tail, size):
        rows, keys = slice(first, first + size), width + min(first + size, tail)
        inputs = (queries[:, :, rows], *(values[:, :, :keys] for values in seen), split.responses[:, :, rows, :keys])
        parts.append(whole(module, *inputs, **{**kwargs, "is_causal": None})[0])
    of_tails = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    # (2P, B, heads, D) → (P, 2B, heads, D)
    return torch.cat([of_prompts, of_tails.reshape(pairs, 2 * tail, *of_tails.shape[2:])], 1), None
