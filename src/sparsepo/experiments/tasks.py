"""One run of a study, described by values that can be written as JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from sparsepo.playground.settings import DemoSettings

if TYPE_CHECKING:
    from .store import Store

_DEMO = DemoSettings()


class Run(Protocol):
    """What a store keeps and workers work through: a described run that can be pickled."""

    @property
    def label(self) -> str:
        """The setting's name in tables."""

    @property
    def key(self) -> str:
        """Name of the run's file."""

    @property
    def seed(self) -> int:
        """Its seed."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""

    def run(self, store: Store) -> dict[str, Any]:
        """Do it. Returns JSON types."""


@dataclass(frozen=True)
class MaterialSettings:
    """What the runs of a seed share: a supervised model and preference pairs of the playground.

    Args:
        seed: of texts, weights, samples.
        architecture: ``gpt2`` or ``llama``.
        texts, sft_epochs, sft_learning_rate, sft_batch_size: of supervised training.
        prompts, held_out_prompts, samples: of the pairs; the held-out ones judge the masks.
        unseen_words: leave the world's held-out words out of the training pairs, so that finding them in the held-out
            pairs is generalisation to words that no preference was shown for.
    """

    seed: int = 0
    architecture: str = _DEMO.architecture
    texts: int = _DEMO.texts
    sft_epochs: float = _DEMO.sft_epochs
    sft_learning_rate: float = _DEMO.sft_learning_rate
    sft_batch_size: int = _DEMO.sft_batch_size
    prompts: int = _DEMO.prompts
    held_out_prompts: int = _DEMO.held_out_prompts
    samples: int = _DEMO.samples
    unseen_words: bool = False

    @property
    def key(self) -> str:
        """Name of these materials: the same settings, the same name."""
        return key_of(f"materials-seed{self.seed}", asdict(self))


@dataclass(frozen=True)
class Task:
    """One training run and how it is judged.

    Args:
        label: the setting's name in tables; no part of the run's identity, so that studies share runs.
        settings: settings of ``SparsePOConfig`` beyond those below.
        materials: model and pairs; its seed is also that of training.
        steps, batch_size, learning_rate: of training, in optimiser steps and pairs a step.
        judged_at: shares of training, in (0, 1], after which the policy is sampled and its reward and KL are taken.
        evaluation_prompts: fresh prompts, one response each, at each of these times.
        oracle: train with ``mask='data'`` and the known preference words as weights.
        keep_samples: keep reward and KL of every response, for the bootstrap.
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    materials: MaterialSettings = MaterialSettings()
    steps: int = _DEMO.steps
    batch_size: int = _DEMO.batch_size
    learning_rate: float = _DEMO.learning_rate
    judged_at: tuple[float, ...] = (1.0,)
    evaluation_prompts: int = 512
    oracle: bool = False
    keep_samples: bool = False

    def __post_init__(self) -> None:
        for share in self.judged_at:
            if not 0 < share <= 1:
                raise ValueError(f"judged_at holds {share!r}; shares of training lie in (0, 1].")
        for name in ("steps", "batch_size", "evaluation_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1.")

    @property
    def seed(self) -> int:
        """Seed of materials and training."""
        return self.materials.seed

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on, as JSON types."""
        return {name: value for name, value in self.to_json().items() if name != "label"}

    @property
    def key(self) -> str:
        """Name of this run's file: the same identity, the same name."""
        return key_of(f"{self.settings.get('objective', 'sparsepo')}-seed{self.seed}", self.identity())

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        content = asdict(self)
        content["judged_at"] = list(self.judged_at)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Task:
        """The task that :meth:`to_json` wrote. Raises ``ValueError`` for names that are none of a task's."""
        unknown = sorted(set(content) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"A task has no {', '.join(unknown)}.")
        materials = MaterialSettings(**content["materials"])
        return cls(**{**content, "materials": materials, "judged_at": tuple(content["judged_at"])})

    def run(self, store: Store) -> dict[str, Any]:
        """Train and judge; see :func:`sparsepo.experiments.playground_runs.run_task`."""
        from .playground_runs import run_task

        return run_task(self, store)

    def quick(self) -> Task:
        """The same in a few seconds: every stage runs, nothing is learned well."""
        small = replace(
            self.materials,
            texts=128,
            sft_epochs=1,
            sft_batch_size=16,
            prompts=24,
            held_out_prompts=12,
        )
        return replace(
            self, materials=small, steps=4, batch_size=4, evaluation_prompts=8, judged_at=self.judged_at[-2:]
        )


def key_of(name: str, content: dict[str, Any]) -> str:
    """A name that tells contents apart: ``name`` and a hash of the content."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
