"""Summaries of a model: n samples a prompt at each temperature, in parts that are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparsepo.evaluation.generation import Prompt, sample_completions

from .scoring import Keep, Progress

# What the paper samples with: five summaries a post, top-p 0.5, at five temperatures
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Sampling:
    """How summaries are sampled.

    Args:
        samples: of each prompt.
        top_p: nucleus.
        max_new_tokens: longest summary.
        seed: of the random numbers; those of a summary depend on it, the prompt's place and the sample's number alone.
        block: prompts sampled, and kept, together.
        batch_size: completions generated together.
    """

    samples: int = 5
    top_p: float = 0.5
    max_new_tokens: int = 128
    seed: int = 0
    block: int = 20
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "block", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0.")


def sample_summaries(
    load: Callable[[], tuple[Any, Any]],
    prompts: Sequence[Prompt],
    temperature: float,
    sampling: Sampling,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> list[list[dict[str, Any]]]:
    """Sample summaries of each prompt.

    At temperature 0 all samples are the same text (the most likely tokens): it is generated once and repeated.

    Args:
        load: gives a Hugging Face causal LM and its tokenizer; called only if a part is not kept yet.
        prompts: texts or conversations that fit into the model.
        temperature, sampling: how.
        keep: keeps each part under its number, ``samples-00000`` and so on.
        progress: called after each part.

    Returns:
        For each prompt, ``sampling.samples`` rows: ``sample``, ``seed``, ``temperature``, ``text``, ``tokens``,
        ``finished`` (whether the end token was reached).
    """
    found: list[list[dict[str, Any]]] = []
    for start in range(0, len(prompts), sampling.block):
        places = range(start, min(start + sampling.block, len(prompts)))

        def generate(places: range = places) -> list[list[dict[str, Any]]]:
            return _sampled(*load(), prompts, places, temperature, sampling)

        found += generate() if keep is None else keep(f"samples-{start:05d}", generate)
        if progress is not None:
            progress(len(found), len(prompts))
    return found


def _sampled(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], places: range, temperature: float, sampling: Sampling
) -> list[list[dict[str, Any]]]:
    groups = sample_completions(
        model,
        tokenizer,
        [prompts[place] for place in places],
        max_new_tokens=sampling.max_new_tokens,
        samples_per_prompt=sampling.samples if temperature > 0 else 1,
        temperature=temperature,
        top_p=sampling.top_p if temperature > 0 else 1.0,
        seed=sampling.seed,
        batch_size=sampling.batch_size,
        numbers=places,
    )
    rows = []
    for group in groups:
        drawn = group if temperature > 0 else group * sampling.samples
        rows.append(
            [
                {
                    "sample": number,
                    "seed": sampling.seed,
                    "temperature": temperature,
                    "text": one.text,
                    "tokens": len(one.token_ids),
                    "finished": one.finished,
                }
                for number, one in enumerate(drawn)
            ]
        )
    return rows


def shortened(tokenizer: Any, prompt: Prompt, room: int) -> Prompt:
    """A prompt of at most ``room`` tokens: the end of a text that is longer (where the model is told what to do).

    Raises:
        ValueError: a conversation is too long (where it could be cut is not clear), or the tokenizer does not say where its
            tokens stand.
    """
    if not isinstance(prompt, str):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        if len(ids) > room:
            raise ValueError(f"A conversation has {len(ids)} tokens, and there is room for {room}; shorten it.")
        return prompt
    length = len(tokenizer(prompt)["input_ids"])
    if length <= room:
        return prompt
    if not tokenizer.is_fast:
        raise ValueError(
            f"A prompt has {length} tokens, and there is room for {room}; this tokenizer cannot cut it: do so before."
        )
    spans = tokenizer(prompt, return_offsets_mapping=True)
    text, over = prompt, len(spans["input_ids"]) - room
    starts = [start for start, end in spans["offset_mapping"] if end > start]
    skip = 0
    while over > 0:  # a cut text may fall into other tokens: once more where it is still too long
        skip += over
        if skip >= len(starts):
            raise ValueError(f"There is no room for a prompt: max_new_tokens leaves {room} tokens.")
        text = prompt[starts[skip] :]
        over = len(tokenizer(text)["input_ids"]) - room
    return text
