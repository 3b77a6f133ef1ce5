"""Supervised model, preference pairs and controls of a seed: made once, read by all runs of that seed."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sparsepo.evaluation.reward_model import train_reward_model
from sparsepo.loading import load_model
from sparsepo.playground.models import build_model, build_tokenizer, train_sft
from sparsepo.playground.pairs import make_pairs, sample_responses
from sparsepo.playground.world import World

from .store import Store
from .tasks import MaterialSettings
from .writing import write_json

Rows = list[dict[str, Any]]
Array = NDArray[np.float64]
EVALUATION_STREAM = "evaluation"  # the world's prompts that policies are judged on
REFERENCE_SAMPLES_SEED = 1_000_000
REWARD_STREAM = "reward model"


@dataclass(frozen=True)
class Materials:
    """What a run starts from.

    Args:
        folder: where they lie; ``sft/`` is the supervised model.
        world: the world.
        tokenizer: one token a word.
        train_rows, held_out_rows: pairs in TRL's preference format.
    """

    folder: Path
    world: World
    tokenizer: PreTrainedTokenizerFast
    train_rows: Rows
    held_out_rows: Rows

    def model(self) -> PreTrainedModel:
        """A fresh copy of the supervised model."""
        model: PreTrainedModel = load_model(self.folder / "sft")
        return model


def get_materials(settings: MaterialSettings, store: Store) -> Materials:
    """Read the materials, or make them if nobody has; whoever comes while they are being made waits."""
    folder = store.folder / "materials" / settings.key
    pairs = folder / "pairs.json"
    if not pairs.is_file():
        with store.claimed(settings.key, wait=True):
            if not pairs.is_file():  # made while we waited
                _make(settings, folder)
    content = json.loads(pairs.read_text(encoding="utf-8"))
    world = World()
    return Materials(folder, world, build_tokenizer(world), content["train"], content["held_out"])


def _make(settings: MaterialSettings, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted process left
    folder.mkdir(parents=True)
    start = time.perf_counter()
    world = World()
    tokenizer = build_tokenizer(world)
    model = train_sft(
        build_model(tokenizer, settings.architecture, settings.seed),
        tokenizer,
        world.reviews(settings.texts, settings.seed),
        folder / "sft",
        epochs=settings.sft_epochs,
        learning_rate=settings.sft_learning_rate,
        batch_size=settings.sft_batch_size,
        seed=settings.seed,
    )
    left_out = world.held_out_words if settings.unseen_words else frozenset()
    rows = {
        name: make_pairs(
            world,
            model,
            tokenizer,
            count,
            seed=settings.seed,
            stream=stream,
            samples=settings.samples,
            without_words=words,
        )
        for name, stream, count, words in (
            ("train", "pairs", settings.prompts, left_out),
            ("held_out", "held-out pairs", settings.held_out_prompts, frozenset()),
        )
    }
    if not rows["train"] or not rows["held_out"]:
        raise ValueError(
            f"The samples gave {len(rows['train'])} training and {len(rows['held_out'])} held-out pairs; sample more "
            f"prompts (prompts={settings.prompts}, held_out_prompts={settings.held_out_prompts})."
        )
    write_json(folder / "settings.json", asdict(settings) | {"seconds": round(time.perf_counter() - start, 1)})
    write_json(folder / "pairs.json", rows)  # last: its being there says that all is


def reference_rewards(settings: MaterialSettings, store: Store, prompts: int = 256, samples: int = 64) -> Array:
    """Rewards of the supervised model's own samples on the prompts that policies are judged on, (prompts, samples).

    Made once. Their random numbers are others than those of the policies' samples.
    """
    path = store.folder / "materials" / settings.key / f"reference_rewards_{prompts}x{samples}.json"
    if not path.is_file():
        materials = get_materials(settings, store)
        with store.claimed(f"{settings.key}-rewards", wait=True):
            if not path.is_file():
                texts = materials.world.prompts(prompts, settings.seed, EVALUATION_STREAM)
                model, seed = materials.model(), settings.seed + REFERENCE_SAMPLES_SEED
                groups = sample_responses(model, materials.tokenizer, texts, samples=samples, seed=seed, batch_size=512)
                write_json(path, [[materials.world.reward(sample.text) for sample in group] for group in groups])
    return np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)


def reward_model_of(materials: Materials) -> Any:
    """A classifier fitted to the reward of fresh texts of the world, from the supervised model, trained once a seed."""
    folder = materials.folder / "reward_model"
    if not (folder / "config.json").is_file():
        content = json.loads((materials.folder / "settings.json").read_text(encoding="utf-8"))
        reviews = materials.world.reviews(content["texts"] // 2, content["seed"], REWARD_STREAM)
        texts = [f"{review.text} {materials.tokenizer.eos_token}" for review in reviews]
        rewards = [materials.world.reward(review.response) for review in reviews]
        model = train_reward_model(materials.folder / "sft", materials.tokenizer, texts, rewards, seed=content["seed"])
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        model.save_pretrained(partial)
        if not folder.exists():
            partial.rename(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder)
