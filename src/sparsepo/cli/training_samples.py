"""``sparsepo train --sample_prompts``: what is sampled while training, read before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .tables import say

_MOST = 64  # prompts: a by-product must not become the run


@dataclass(frozen=True)
class SampledPrompts:
    """What ``--sample_prompts`` asks for, loaded."""

    prompts: list[Any]
    every: int
    settings: Any
    reward: Any


def sampled_prompts(own: Any, seed: int, console: Any) -> SampledPrompts | None:
    """Prompts, settings and reward of the flags; None where nothing is to be sampled.

    Raises:
        DataError, ValueError: no such prompts or reward.
    """
    if own.sample_prompts is None:
        return None
    from sparsepo.data import load_prompts
    from sparsepo.evaluation.rewards import get_reward
    from sparsepo.evaluation.sampling import SamplingSettings

    settings = SamplingSettings(samples=1, max_new_tokens=own.sample_max_new_tokens, seed=seed)
    reward = None if own.sample_reward is None else get_reward(own.sample_reward)
    prompts, _ = load_prompts(own.sample_prompts, limit=_MOST)
    say(console, f"{len(prompts)} prompts are sampled every {own.sample_every} steps into samples.jsonl")
    return SampledPrompts(prompts, own.sample_every, settings, reward)


def keep_samples(trainer: Any, tokenizer: Any, sampled: SampledPrompts | None) -> None:
    """Add the callback."""
    if sampled is None:
        return
    from sparsepo.evaluation.training_samples import TrainingSamples

    trainer.add_callback(TrainingSamples(tokenizer, sampled.prompts, sampled.every, sampled.settings, sampled.reward))
