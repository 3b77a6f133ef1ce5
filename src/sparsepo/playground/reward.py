"""The world's reward as `sparsepo.evaluation.rewards` knows rewards."""

from __future__ import annotations

from collections.abc import Sequence

from sparsepo.evaluation.generation import Prompt
from sparsepo.evaluation.rewards import Reward

from .world import World


class PlaygroundReward(Reward):
    """:meth:`World.reward` of each completion, in (0, 1)."""

    def __init__(self) -> None:
        self.world = World()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Of each completion; the prompts are not read."""
        return [self.world.reward(text) for text in completions]


def playground_reward(argument: str) -> PlaygroundReward:
    """The reward; there is nothing to choose."""
    return PlaygroundReward()
