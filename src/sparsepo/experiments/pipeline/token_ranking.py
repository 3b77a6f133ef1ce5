"""Did the masks find the tokens that decide? Held-out pairs of a run against a yardstick of their task."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sparsepo.evaluation.controls import entropy, reference_log_probs
from sparsepo.evaluation.edited_spans import EditedPair, edited_marks
from sparsepo.evaluation.token_table import Batch, Description, TokenTable, token_columns
from sparsepo.evaluation.word_lists import read_sentiment_words, word_marks
from sparsepo.experiments.judging import rank
from sparsepo.experiments.trainers import build_trainer
from sparsepo.masks import load_mask

from .jobs import Job, Row, read_lines

# yardstick → what its tokens are called in tables
YARDSTICKS = {
    "words": "sentiment words of the lists",
    "changes": "tokens that differ between the program and its mutant",
    "playground": "preference words of the world",
}
SCORES = {
    "reward_mask": "mask_auc",
    "kl_mask": "kl_mask_auc",
    "log_ratio": "log_ratio_auc",
    "entropy": "entropy_auc",  # the control: what finds the tokens without having learned from a pair
}


def rank_tokens(job: Job, policy: Any, reference: Any, tokenizer: Any) -> dict[str, float]:
    """AUC of masks, |log-ratio| and the reference's entropy for the yardstick's tokens, among all and among content words.

    Args:
        job: an evaluation whose ``train`` input is there.
        policy, reference, tokenizer: the run's.

    Returns:
        The columns of ``SCORES``, each as far as it is there, also with ``_content`` where the yardstick knows content
        words; and ``yardstick_share``, the share of tokens that are the yardstick's. Nothing where no token is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = _scoring_trainer(job, policy, reference, tokenizer, folder)
        scored = [(dict(batch), trainer.score(batch)) for batch in trainer.get_eval_dataloader()]
        table = _table(job, scored, reference, tokenizer)
        trainer.end()
    if not table.positive.any() or table.positive.all():
        return {}
    selections: dict[str, dict[str, str]] = {"": {}}
    selections |= {"_content": {"within": "content"}} if "content" in table.groups else {}
    ranking = rank(table, selections)
    found = {
        f"{column}{suffix}": ranking[score][suffix]["auc"]  # type: ignore[index]
        for score, column in SCORES.items()
        if score in ranking
        for suffix in selections
        if ranking[score][suffix] is not None
    }
    return {**found, "yardstick_share": float(np.mean(table.positive))}


def _scoring_trainer(job: Job, policy: Any, reference: Any, tokenizer: Any, folder: str) -> Any:
    """A trainer that scores with the run's masks and trains nothing. Methods without masks are scored as DPO: their
    log-ratios are asked for, which no loss changes."""
    saved = Path(job.model("train"))
    has_mask = (saved / "mask" / "mask.json").is_file()
    content = json.loads((saved / "sparsepo.json").read_text(encoding="utf-8")) if has_mask else {}
    rows: list[Row] = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")} | {"row_id": number}
        for number, row in enumerate(read_lines(job.inputs["pairs"] / "held_out.jsonl"))
    ]
    return build_trainer(
        policy,
        reference,
        tokenizer,
        rows,
        rows,
        {"objective": content["objective"]["name"] if has_mask else "dpo", **job.settings["lengths"]},
        output_dir=folder,
        steps=1,
        batch_size=8,
        learning_rate=0.0,
        seed=0,
        mask=load_mask(saved) if has_mask else None,
    )


def _table(job: Job, scored: Any, reference: Any, tokenizer: Any) -> TokenTable:
    yardstick = job.settings["yardstick"]

    def controls(batch: Batch) -> dict[str, Tensor]:
        return {"entropy": entropy(reference_log_probs(reference, batch))}

    if yardstick == "playground":
        from sparsepo.playground.world import World
        from sparsepo.playground.yardstick import token_table

        table = token_table(World(), tokenizer, reference, scored)
        return TokenTable(table.chosen, table.positive, table.scores, {"content": table.open_class})
    if yardstick == "words":
        lists = {role: job.stage.sources[role][0] for role in ("vader", "opinion") if role in job.stage.sources}
        columns = token_columns(scored, word_marks(tokenizer, read_sentiment_words(**lists)), controls)
        positive, content = columns.pop("sentiment"), columns.pop("content")
        for name in ("word", "positive_word", "negative_word"):
            del columns[name]
        return TokenTable(columns.pop("chosen"), positive, columns, {"content": content})
    columns = token_columns(scored, _changes(job, tokenizer), controls)
    return TokenTable(columns.pop("chosen"), columns.pop("edited"), columns)


def _changes(job: Job, tokenizer: Any) -> Description:
    pairs = {}
    for number, row in enumerate(read_lines(job.inputs["pairs"] / "held_out.jsonl")):
        start, end = row["span"]
        old = (start, start + len(row["before"]))
        pairs[number] = EditedPair(row["prompt"], row["chosen"], row["rejected"], (old,), ((start, end),))
    return edited_marks(tokenizer, pairs)
