"""Rewards of samples, and what else a task asks of them: the one place that joins the evaluation room's parts to runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .jobs import MODEL, Job, Row

# rows that the prompts came from, and texts → a number a text
Scorer = Callable[[Sequence[Row], Sequence[str]], list[float]]
# kind of reward → what it is
REWARDS = {
    "trained": "a small reward model of the reward stage",
    "lexicon": "σ(positive − negative words) by the word lists",
    "classifier": "the probability of a class by a classifier of the hub or a folder",
    "regression": "the number of a reward model of the hub or a folder",
    "playground": "the known words of the world",
    "rouge": "ROUGE-L F1 against the best-scored reference",
    "tests": "share of samples that pass all tests of their problem",
}


def reward_of(job: Job) -> Scorer:
    """The reward that the settings of an evaluation name."""
    own: dict[str, Any] = job.settings["reward"]
    kind = own["kind"]
    if kind == "trained":
        return _trained(job)
    if kind == "rouge":
        return rouge_l
    raise ValueError(f"reward.kind={kind!r} is unknown; choose one of {', '.join(REWARDS)}.")


def further_metrics(job: Job, rows: Sequence[Row], texts: Sequence[str]) -> dict[str, float]:
    """What the task reports beside the reward."""
    return {}


def rouge_l(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each text against its row's reference."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(row["reference"], text)["rougeL"].fmeasure) for row, text in zip(rows, texts, strict=True)
    ]


def _trained(job: Job) -> Scorer:
    from sparsepo.evaluation.reward_model import predict_rewards

    from .reward_stage import load_reward_model, text_of

    model, tokenizer = load_reward_model(job.inputs["reward"] / MODEL)
    found = job.results["reward"]

    def score(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        whole = [
            text_of(tokenizer, row["prompt"] if found["reads_prompt"] else "", text)
            for row, text in zip(rows, texts, strict=True)
        ]
        values = predict_rewards(model, tokenizer, whole, max_length=found["max_length"])
        return [float(value) for value in values]

    return score
