"""Rewards of samples, and what else a task asks of them: the one place that joins the evaluation room's parts to runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from .jobs import MODEL, Job, Row

# rows that the prompts came from, and texts → a number a text
Scorer = Callable[[Sequence[Row], Sequence[str]], list[float]]


def reward_of(job: Job) -> Scorer:
    """The reward that the settings of an evaluation name."""
    kind = job.settings["reward"]["kind"]
    if kind == "rouge":
        return rouge_l
    if kind == "tests":
        from .programs import passes

        return passes(job)
    return _named(job)


def further_metrics(job: Job, rows: Sequence[Row], texts: Sequence[str], rewards: Sequence[float]) -> dict[str, float]:
    """What the task reports beside the reward."""
    if job.settings["reward"]["kind"] == "tests":
        from .programs import pass_rates

        return pass_rates(rewards, job.settings["samples"])
    if job.settings["task"] == "summarisation":
        return _summary_metrics(rows, texts)
    return {}


def rouge_l(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
    """ROUGE-L (F1, 0 to 100) of each text against its row's reference."""
    return [_rouge(text, row["reference"])["rougeL"] for row, text in zip(rows, texts, strict=True)]


@lru_cache(maxsize=1 << 16)  # the reward and the further metrics ask for the same samples
def _rouge(text: str, reference: str) -> dict[str, float]:
    from sparsepo.evaluation.summaries.overlap import rouge

    return rouge(text, [reference])


def _summary_metrics(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, float]:
    found = [_rouge(text, row["reference"]) for row, text in zip(rows, texts, strict=True)]
    return {kind: sum(own[kind] for own in found) / len(found) for kind in found[0]}


def _named(job: Job) -> Scorer:
    """A reward of :mod:`sparsepo.evaluation.rewards`."""
    from sparsepo.evaluation.rewards import get_reward

    reward = get_reward(specification(job))

    def score(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        return reward([row["prompt"] for row in rows], texts)

    return score


def specification(job: Job) -> str:
    """The reward as :func:`sparsepo.evaluation.rewards.get_reward` takes it."""
    own = job.settings["reward"]
    if own["kind"] == "trained":
        return f"regression:{job.inputs['reward'] / MODEL}"
    if own["kind"] == "lexicon":
        return "lexicon:" + ",".join(job.stage.sources[role][0] for role in ("vader", "opinion"))
    if own["kind"] == "playground":
        return "playground"
    label = f":{own['label']}" if own.get("label") else ""
    return f"{own['kind']}:{own['model']}{label}"
