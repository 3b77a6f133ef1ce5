"""Preference pairs of the sentiment world: sampled from a model, judged by the known words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsepo.evaluation.generation import Completion, Progress, sample_completions

from .models import MAX_POSITIONS
from .world import World

# Long enough for five of the longest sentences and the end token
MAX_NEW_TOKENS = 64
assert MAX_NEW_TOKENS < MAX_POSITIONS


def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    samples: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[list[Completion]]:
    """``samples`` responses to each prompt, from the model's own distribution (temperature 1, no truncation)."""
    return sample_completions(
        model,
        tokenizer,
        prompts,
        max_new_tokens=MAX_NEW_TOKENS,
        samples_per_prompt=samples,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )


def build_pairs(
    prompts: Sequence[str],
    completions: Sequence[Sequence[Completion]],
    reward: Callable[[str], float],
    *,
    min_gap: float = 0.0,
    without_words: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """The best against the worst response of each prompt, in TRL's preference format.

    Prompts whose responses do not differ in reward give no pair; neither do unfinished or empty responses, which would
    teach the model to stop early or late. Among equals the first sampled is taken.

    Args:
        prompts: the prompts.
        completions: responses of each prompt.
        reward: of a response's text, such as :meth:`World.reward`.
        min_gap: least difference in reward, 0 meaning any.
        without_words: responses with any of these words are left out (:attr:`World.held_out_words`).

    Returns:
        Rows with ``prompt``, ``chosen``, ``rejected`` (starting with the space that separates them from the prompt) and
        ``chosen_reward``, ``rejected_reward``, in the order of the prompts.
    """
    rows = []
    for prompt, group in zip(prompts, completions, strict=True):
        texts = [c.text for c in group if c.finished and c.text and not without_words.intersection(c.text.split())]
        if len(texts) < 2:
            continue
        rewards = [reward(text) for text in texts]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if rewards[best] - rewards[worst] <= 0 or rewards[best] - rewards[worst] < min_gap:
            continue
        rows.append(
            {
                "prompt": prompt,
                "chosen": " " + texts[best],
                "rejected": " " + texts[worst],
                "chosen_reward": rewards[best],
                "rejected_reward": rewards[worst],
            }
        )
    return rows


def make_pairs(
    world: World,
    model: Any,
    tokenizer: Any,
    count: int,
    *,
    seed: int = 0,
    stream: str = "pairs",
    samples: int = 4,
    without_words: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Sample responses to ``count`` fresh prompts and pair them: at most one pair a prompt. Same arguments, same pairs."""
    prompts = world.prompts(count, seed, stream)
    responses = sample_responses(model, tokenizer, prompts, samples=samples, seed=seed, progress=progress)
    return build_pairs(prompts, responses, world.reward, without_words=without_words)
