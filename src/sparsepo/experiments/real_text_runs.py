"""One run on real text: train masks on pairs, judge them against word lists or against known edits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sparsepo.data import PairSettings, pairs_from_scored, split_by_prompt
from sparsepo.data.reading import read_rows
from sparsepo.evaluation.controls import entropy, head_numbers, random_scores, reference_log_probs, untrained_masks
from sparsepo.evaluation.edited_spans import EditedPair, OppositeWords, edit_pairs, edited_marks
from sparsepo.evaluation.reward_model import gradient_control, train_reward_model
from sparsepo.evaluation.token_table import Batch, Description, TokenTable, token_columns
from sparsepo.evaluation.word_lists import SentimentWords, read_sentiment_words, word_marks
from sparsepo.loading import load_model, load_tokenizer
from sparsepo.masks import LearnedMask

from .judging import MASKS, health_of, last_values, rank, summary_of_heads
from .store import Store
from .tasks import key_of
from .trainers import build_trainer
from .writing import write_json

YARDSTICKS = ("words", "edits")
UNTRAINED_HEADS = 20
# first tokens of words only: how a word goes on is easy to tell apart
SELECTIONS: dict[str, dict[str, str]] = {
    "all": {},
    "word": {"within": "word"},
    "content": {"within": "content"},
    "chosen_content": {"side": "chosen", "within": "content"},
    "rejected_content": {"side": "rejected", "within": "content"},
}


@dataclass(frozen=True)
class Corpus:
    """Scored completions, and word lists beside them.

    Args:
        model: folder of a small causal LM: policy and reference.
        scored: file of rows with prompt, text and reward.
        vader, opinion: zip files of the word lists; one may be missing.
        margin, cap: least difference of rewards of a pair; most pairs a prompt.
        eval_fraction: share of the prompts whose pairs judge.
        limit: most training pairs.
    """

    model: str
    scored: str
    vader: str | None
    opinion: str | None
    margin: float = 0.3
    cap: int = 6
    eval_fraction: float = 0.15
    limit: int | None = None

    @property
    def key(self) -> str:
        """Name of what is made of it."""
        return key_of("corpus", asdict(self))

    def words(self) -> SentimentWords:
        """The word lists, joined."""
        return read_sentiment_words(self.vader, self.opinion)

    def pairs(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Training and held-out pairs, of different prompts; always the same."""
        settings = PairSettings(strategy="threshold", margin=self.margin, cap=self.cap)
        pairs, _ = pairs_from_scored((row for _, row in read_rows(Path(self.scored))), settings)
        train, held_out = split_by_prompt(pairs, self.eval_fraction)
        return train[: self.limit], held_out


@dataclass(frozen=True)
class RealTextTask:
    """A training run on real text.

    Args:
        label: the setting's name in tables.
        corpus: model, texts and lists.
        settings: settings of ``SparsePOConfig`` beyond those below.
        yardstick: ``words``: the pairs as they are, against the word lists; ``edits``: texts against themselves with
            replaced words, so that the deciding tokens are known.
        seed, steps, batch_size, learning_rate, max_length: of training.
    """

    label: str
    corpus: Corpus
    settings: dict[str, Any] = field(default_factory=dict)
    yardstick: str = "words"
    seed: int = 0
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-4
    max_length: int = 160

    def __post_init__(self) -> None:
        if self.yardstick not in YARDSTICKS:
            raise ValueError(f"yardstick={self.yardstick!r} is unknown; choose one of {', '.join(YARDSTICKS)}.")

    @property
    def key(self) -> str:
        """Name of this run's file."""
        identity = {name: value for name, value in self.to_json().items() if name != "label"}
        return key_of(f"{self.yardstick}-seed{self.seed}", identity)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    def run(self, store: Store) -> dict[str, Any]:
        """Train and judge. Returns JSON types as :func:`sparsepo.experiments.playground_runs.run_task`, without policy."""
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            return _trained_and_judged(self, store, folder) | {"seconds": round(time.perf_counter() - start, 1)}


def _trained_and_judged(task: RealTextTask, store: Store, folder: str) -> dict[str, Any]:
    train, held_out, edits = _rows(task)
    trainer = _trainer(task, train, held_out, folder)
    trainer.train()
    batches = [dict(batch) for batch in trainer.get_eval_dataloader()]
    tokenizer = trainer.processing_class
    descriptions = [word_marks(tokenizer, task.corpus.words()), _controls(trainer, task)]
    if edits:
        descriptions.append(edited_marks(tokenizer, edits))
    descriptions.append(gradient_control(_reward_model(task, store).to(trainer.args.device)))
    columns = token_columns(((batch, trainer.score(batch)) for batch in batches), *descriptions)
    table = _table(columns, "edited" if edits else "sentiment")
    heads = [f"untrained_{number}" for number in range(UNTRAINED_HEADS)]
    untrained = {name: summary_of_heads(table, heads, SELECTIONS[name]) for name in ("all", "content")}
    for name in heads:
        del table.scores[name]
    return {
        "train_pairs": len(train),
        "held_out_pairs": len(held_out),
        "positive_share": float(table.positive.mean()),
        "masks": {name: table.mask_summary(name) for name in MASKS if name in table.scores},
        "ranking": rank(table, SELECTIONS),
        "controls": {"untrained": untrained},
        "share_of_ceiling": {},
        "health": health_of(trainer),
        "log": last_values(trainer.state.log_history),
    }


def _table(columns: dict[str, np.ndarray[Any, Any]], positive: str) -> TokenTable:
    groups = {name: columns.pop(name) for name in ("word", "content", "positive_word", "negative_word")}
    marks = columns.pop("sentiment")
    labels = columns.pop(positive) if positive != "sentiment" else marks
    return TokenTable(columns.pop("chosen"), labels, columns, groups | {"sentiment": marks})


def _rows(task: RealTextTask) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[int, EditedPair]]:
    """Training rows, held-out rows, and by row number what was edited in the held-out ones."""
    train, held_out = task.corpus.pairs()
    if task.yardstick == "words":
        return _plain(train), _plain(held_out), {}
    opposite = OppositeWords()
    parts = [edit_pairs(_texts(rows), opposite, seed=number) for number, rows in enumerate((train, held_out))]
    if not all(parts):
        raise ValueError(
            "No text holds a word that can be replaced by its opposite: give more texts, or judge by words only."
        )
    rows = [[pair.row() for pair in own] for own in parts]
    numbered = [row | {"row_id": number} for number, row in enumerate(rows[1])]
    return rows[0], numbered, dict(enumerate(parts[1]))


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]


def _texts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every different text once."""
    return list(dict.fromkeys((row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")))


def _trainer(task: RealTextTask, train: list[dict[str, Any]], held_out: list[dict[str, Any]], folder: str) -> Any:
    policy, reference = (load_model(task.corpus.model) for _ in range(2))
    return build_trainer(
        policy,
        reference,
        load_tokenizer(task.corpus.model),
        train,
        held_out,
        {"max_length": task.max_length, **task.settings},
        output_dir=folder,
        steps=task.steps,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        seed=task.seed,
    )


def _controls(trainer: Any, task: RealTextTask) -> Description:
    reference = trainer.ref_model
    position = task.settings.get("mask_position") or "predicting"

    def describe(batch: Batch) -> dict[str, Tensor]:
        own = {"entropy": entropy(reference_log_probs(reference, batch)), "random": random_scores(batch)}
        own["uniform"] = own["entropy"] * 0 + 0.5
        for number, mask in enumerate(untrained_masks(reference, batch, range(UNTRAINED_HEADS), position)):
            own[f"untrained_{number}"] = mask
        if isinstance(trainer.masker, LearnedMask):
            own |= head_numbers(trainer.masker, reference, batch)
        return own

    return describe


def _reward_model(task: RealTextTask, store: Store) -> Any:
    """A classifier fitted to the rewards of the training texts, trained once a corpus."""
    from transformers import AutoModelForSequenceClassification

    folder = store.folder / "materials" / f"{task.corpus.key}-reward"
    done = folder / "done.json"
    if not done.is_file():
        with store.claimed(folder.name, wait=True):
            if not done.is_file():
                tokenizer = load_tokenizer(task.corpus.model)
                rewards: dict[str, float] = {}
                for row in task.corpus.pairs()[0]:
                    for side in ("chosen", "rejected"):
                        rewards[row["prompt"] + row[side] + tokenizer.eos_token] = float(row[f"{side}_reward"])
                model = train_reward_model(
                    task.corpus.model,
                    tokenizer,
                    list(rewards),
                    list(rewards.values()),
                    epochs=3,
                    max_length=task.max_length,
                )
                model.save_pretrained(folder)
                write_json(done, {"texts": len(rewards)})
    return AutoModelForSequenceClassification.from_pretrained(folder)
