"""A small reward model, trained locally on labelled texts or on preference pairs and judged on what it has not seen."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from sparsepo.data.labelled import read_labelled
from sparsepo.experiments.writing import write_json

from .jobs import MODEL, Job, Row, read_lines
from .preparing import response_of

_CLASSES = {"POSITIVE": 1.0, "NEGATIVE": 0.0}


def train_reward(job: Job) -> Row:
    """Train from the supervised model's weights by regression, and say how well it tells held-out texts apart."""
    from sparsepo.evaluation.ranking import roc_auc
    from sparsepo.evaluation.reward_classifiers import SETTINGS_FILE
    from sparsepo.evaluation.reward_model import predict_rewards, train_reward_model
    from sparsepo.loading import load_tokenizer

    own = job.settings
    tokenizer = load_tokenizer(job.model())
    tokenizer.truncation_side = "left"  # what is judged stands at the end
    train, held_out = _texts(job)
    model = train_reward_model(
        job.model(),
        tokenizer,
        [text_of(tokenizer, prompt, text) for prompt, text, _ in train],
        [value for _, _, value in train],
        epochs=own["epochs"],
        learning_rate=own["learning_rate"],
        max_length=own["max_length"],
        seed=own["seed"],
    )
    model.save_pretrained(job.folder / MODEL)
    tokenizer.save_pretrained(job.folder / MODEL)
    reads = "completion" if own["trained_on"] == "labelled" else "both"
    # how `regression:FOLDER` reads texts
    write_json(
        job.folder / MODEL / SETTINGS_FILE, {"reads": reads, "max_length": own["max_length"], "append_end": True}
    )
    predicted = predict_rewards(
        model, tokenizer, [text_of(tokenizer, prompt, text) for prompt, text, _ in held_out], own["max_length"]
    )
    actual = np.array([value for _, _, value in held_out])
    metrics = {"held_out_auc": roc_auc(predicted.double().numpy(), actual > actual.mean())}
    if own["trained_on"] == "pairs":  # chosen and rejected stand after each other
        metrics["held_out_pair_accuracy"] = float(np.mean(predicted[::2].numpy() > predicted[1::2].numpy()))
    else:
        metrics["held_out_correlation"] = float(np.corrcoef(predicted.numpy(), actual)[0, 1])
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics.items())
    return {
        "metrics": metrics,
        "texts": len(train),
        "held_out_texts": len(held_out),
        "summary": f"{len(train):,} texts, {told}",
    }


def text_of(tokenizer: Any, prompt: Any, text: str) -> str:
    """What the reward model reads: prompt and text with the end token, whose position the number is read at."""
    if isinstance(prompt, str):
        return prompt + text + str(tokenizer.eos_token)
    return str(tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=False))


Labelled = tuple[Any, str, float]


def _texts(job: Job) -> tuple[list[Labelled], list[Labelled]]:
    """(prompt, text, value) to train on and to judge by."""
    on = job.settings["trained_on"]
    if on == "labelled":
        found = [("", text, value) for source in job.stage.sources["labelled"] for text, value in _labelled(source)]
        random.Random(job.settings["seed"]).shuffle(found)
        limit = job.settings.get("limit")
        found = found if limit is None else found[:limit]
        count = max(2, len(found) // 10)
        return found[count:], found[:count]
    if on == "scored":
        return tuple(  # type: ignore[return-value]
            [_scored(row) for row in read_lines(job.inputs["data"] / f"{part}.jsonl")] for part in ("train", "held_out")
        )
    return tuple(  # type: ignore[return-value]
        [
            (row["prompt"], row[side], value)
            for row in read_lines(job.inputs["pairs"] / f"{part}.jsonl")
            for side, value in (("chosen", 1.0), ("rejected", 0.0))
        ]
        for part in ("train", "held_out")
    )


def _scored(row: Row) -> Labelled:
    prompt, text, value = response_of(row)
    return prompt, text, value


def _labelled(source: str) -> list[tuple[str, float]]:
    """Texts of a source with 1 for positive and 0 for negative ones.

    Raises:
        ValueError: texts without classes, or of others than these two.
    """
    found = read_labelled(source)
    if found is None:
        raise ValueError(
            f"{source} holds no texts with classes: folders or files named pos and neg, or rows with label."
        )
    if unknown := sorted({label for _, label in found} - set(_CLASSES)):
        raise ValueError(f"{source}: class {unknown[0]!r} is neither pos nor neg; give texts of these two.")
    return [(text, _CLASSES[label]) for text, label in found]
