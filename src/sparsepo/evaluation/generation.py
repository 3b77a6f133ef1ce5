"""Sampling completions from any Hugging Face causal LM: batched, seeded, independent of how prompts are batched.

Each completion has its own stream of random numbers, a function of (seed, prompt index, sample index), and each of its
tokens is picked by inverting the cumulative distribution at the next number. So a completion does not depend on the
batch size, on the other prompts of its batch, or on padding (up to floating-point rounding of the model itself), and
``n`` samples of a prompt begin with those of a smaller ``n``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from sparsepo.loading import positions_in

from .stopping import StopTexts

Prompt = str | list[dict[str, str]]
# Progress: completions done, completions in all
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Args:
        prompt_ids: tokens of the prompt, unpadded.
        token_ids: sampled tokens, the end token included where it was reached.
        text: the decoded completion without special tokens.
        finished: whether the end token or a stop text was reached within the allowed length.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finished: bool


def sample_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    samples_per_prompt: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    max_prompt_length: int | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[list[Completion]]:
    """Sample completions of each prompt.

    Args:
        model: a Hugging Face causal LM. It is run in evaluation mode; its mode is restored. Its own generation
            settings are not used, except for its end tokens.
        tokenizer: its tokenizer, with a padding or an end token.
        prompts: texts, or conversations (lists of role/content messages; the chat template is applied).
        max_new_tokens: longest completion.
        samples_per_prompt: completions of each prompt.
        temperature: of the distribution; 0 takes the most likely token.
        top_p: nucleus sampling: the smallest set of tokens with at least this probability.
        seed: of the random numbers; the global random state is neither used nor changed.
        numbers: a number for each prompt that, with the seed, decides what is drawn for it; None: 0, 1, 2, … A part of a
            longer list of prompts gets the same samples with its own numbers.
        max_prompt_length: only the last tokens of a longer prompt are kept, as in training; None: all.
        stop: texts at the first of which a completion ends; its text ends before it.
        batch_size: completions generated together (no effect on the result).
        progress: called after each batch with (completions done, completions in all).

    Returns:
        For each prompt in order, its ``samples_per_prompt`` completions.

    Raises:
        ValueError: a setting is out of range, or a prompt has no tokens or leaves no room for a completion in the model's
            positions (its row is named).
    """
    _check_settings(max_new_tokens, samples_per_prompt, temperature, top_p, batch_size)
    if numbers is not None and len(numbers) != len(prompts):
        raise ValueError(f"numbers has {len(numbers)} entries for {len(prompts)} prompts; give one a prompt.")
    encoded = encode_prompts(model, tokenizer, prompts, max_new_tokens, max_prompt_length)
    jobs = [(row, sample) for row in range(len(prompts)) for sample in range(samples_per_prompt)]
    # prompts of like length together: less padding
    jobs.sort(key=lambda job: len(encoded[job[0]]))
    results: dict[tuple[int, int], Completion] = {}
    # made before the model's generation settings are hidden: it reads their end tokens
    sampler = _Sampler(model, tokenizer, max_new_tokens, temperature, top_p, seed, stop)
    if isinstance(stop, str) or "" in stop:
        raise ValueError(f"stop={stop!r} must be a list of texts, none of them empty.")
    with evaluating(model), _own_generation_settings(model):
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            streams = batch if numbers is None else [(numbers[row], sample) for row, sample in batch]
            for job, completion in zip(batch, sampler([encoded[row] for row, _ in batch], streams), strict=True):
                results[job] = completion
            if progress is not None:
                progress(len(results), len(jobs))
    return [[results[row, sample] for sample in range(samples_per_prompt)] for row in range(len(prompts))]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored afterwards."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def _own_generation_settings(model: Any) -> Iterator[None]:
    """Hide the model's generation settings: ``generate`` fills what a config leaves unset from them (a repetition
    penalty, say), and the samples would then not be those of the model's distribution."""
    from transformers import GenerationConfig

    # a PEFT model hands its own settings down to the model inside it
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    saved = [holder.__dict__.get("generation_config") for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, own in zip(holders, saved, strict=True):
            if own is None:
                del holder.generation_config
            else:
                holder.generation_config = own


def _check_settings(
    max_new_tokens: int, samples_per_prompt: int, temperature: float, top_p: float, batch_size: int
) -> None:
    for name, value in (
        ("max_new_tokens", max_new_tokens),
        ("samples_per_prompt", samples_per_prompt),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be at least 0 (0 takes the most likely token).")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1 (1 keeps every token).")


def encode_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int, max_prompt_length: int | None = None
) -> list[list[int]]:
    """Tokens of each prompt, cut to their last ``max_prompt_length``; errors as in :func:`sample_completions`."""
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"max_prompt_length={max_prompt_length} must be at least 1.")
    encoded = [_encode(tokenizer, prompt, row)[-(max_prompt_length or 0) :] for row, prompt in enumerate(prompts)]
    positions = positions_in(model.config)
    if positions is None:
        return encoded
    for row, ids in enumerate(encoded):
        if len(ids) + max_new_tokens > positions:
            raise ValueError(
                f"Prompt {row} has {len(ids)} tokens: with max_new_tokens={max_new_tokens} that is more than the model's "
                f"{positions} positions. Lower max_new_tokens, or cut prompts with "
                f"max_prompt_length={max(positions - max_new_tokens, 1)}."
            )
    return encoded


def _encode(tokenizer: Any, prompt: Prompt, row: int) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    if not ids:
        raise ValueError(f"Prompt {row} has no tokens: {prompt!r}; drop it or give it a text.")
    return list(ids)


class _Sampler:
    """Generates one batch at a time with the settings of a run."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        stop: Sequence[str],
    ) -> None:
        self.model, self.tokenizer, self.stop = model, tokenizer, StopTexts(tokenizer, stop)
        self.max_new_tokens, self.temperature, self.top_p, self.seed = max_new_tokens, temperature, top_p, seed
        self.end_ids = _end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else (self.end_ids or [0])[0]

    def __call__(self, prompts: Sequence[list[int]], jobs: Sequence[tuple[int, int]]) -> list[Completion]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        attention = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):  # padding at the left, so that generation continues every row
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            attention[i, width - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=attention.to(self.model.device),
            generation_config=self._generation_config(),
            logits_processor=self._processors(jobs, width),
            stopping_criteria=self.stop.criteria(width),
        )
        generated = output[:, width:].tolist()
        return [self._completion(prompt, new) for prompt, new in zip(prompts, generated, strict=True)]

    def _generation_config(self) -> Any:
        from transformers import GenerationConfig

        # Greedy over the processed scores: the processor below has done the drawing
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_ids or None,
        )

    def _processors(self, jobs: Sequence[tuple[int, int]], width: int) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        if self.temperature == 0:
            return processors
        if self.temperature != 1:
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        streams = [np.random.default_rng([self.seed, row, sample]).random(self.max_new_tokens) for row, sample in jobs]
        processors.append(_InverseCdf(torch.from_numpy(np.stack(streams)), width))
        return processors

    def _completion(self, prompt: list[int], generated: list[int]) -> Completion:
        ends = [i for i, token in enumerate(generated) if token in self.end_ids]
        tokens = generated[: ends[0] + 1] if ends else generated
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        tokens, text, stopped = self.stop.cut(tokens, text)
        return Completion(tuple(prompt), tuple(tokens), text, stopped or bool(ends))


class _InverseCdf(LogitsProcessor):
    """Leaves one finite score a row: the token at which the cumulative distribution passes the row's next number."""

    def __init__(self, numbers: Tensor, prompt_width: int) -> None:
        self.numbers = numbers  # (B, max_new_tokens), float64
        self.prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        cumulative = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        total = cumulative[:, -1:]
        token = torch.searchsorted(cumulative, self.numbers[:, step].to(scores.device)[:, None] * total, right=True)
        # a product that rounds up to the total means the last token with any probability
        token = torch.minimum(token, torch.searchsorted(cumulative, total.contiguous()))
        return torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """End tokens of the model's generation settings and of the tokenizer."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    ids = list(given) if isinstance(given, (list, tuple)) else [given]
    return [i for i in dict.fromkeys([*ids, tokenizer.eos_token_id]) if i is not None]
