"""The playground's SFT and pairs: texts and pairs of a made-up world whose deciding words are known."""

from __future__ import annotations

from typing import Any

from sparsepo.loading import load_model, load_tokenizer

from .jobs import MODEL, Job, Row, write_lines


def world_sft(job: Job) -> Row:
    """A small model trained on the world's texts."""
    from sparsepo.playground.models import build_model, build_tokenizer, train_sft
    from sparsepo.playground.world import World

    own, world = job.settings, World()
    tokenizer = build_tokenizer(world)
    train_sft(
        build_model(tokenizer, own["architecture"], own["seed"]),
        tokenizer,
        world.reviews(own["texts"], own["seed"]),
        job.folder / MODEL,
        epochs=own["sft_epochs"],
        learning_rate=own["sft_learning_rate"],
        batch_size=own["sft_batch_size"],
        seed=own["seed"],
    )
    return {"summary": f"{own['texts']:,} texts"}


def world_pairs(job: Job) -> Row:
    """Pairs of the model's own samples, judged by the known words; the held-out ones from other prompts."""
    from sparsepo.playground.pairs import make_pairs
    from sparsepo.playground.world import World

    own = job.settings
    model, tokenizer = load_model(job.model()), load_tokenizer(job.model())
    found: dict[str, Any] = {}
    for part, stream, count in (
        ("train", "pairs", own["prompts"]),
        ("held_out", "held-out pairs", own["held_out_prompts"]),
    ):
        rows = make_pairs(World(), model, tokenizer, count, seed=own["seed"], stream=stream, samples=own["samples"])
        if not rows:
            raise ValueError(
                f"The samples gave no {part} pairs; sample more prompts (prepare.prompts={own['prompts']})."
            )
        found[part] = write_lines(job.folder / f"{part}.jsonl", rows)
    return {**found, "summary": f"{found['train']:,} training and {found['held_out']:,} held-out pairs"}
