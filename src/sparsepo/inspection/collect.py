"""From scored batches to records: the one place where numbers of tokens are gathered for inspection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsepo.evaluation.text_spans import real_tokens, response_start, token_spans
from sparsepo.evaluation.token_table import Batch
from sparsepo.objectives import Objective, PairScores, TokenScores

from .records import Floats, Integers, PairRecord, SideRecord

_CONTEXT = 8  # tokens of the prompt that the first response token is decoded beside
Score = Callable[[Batch], PairScores]


def collect(
    batches: Iterable[Batch], score: Score, objective: Objective, tokenizer: Any, *, group: str = "", first: int = 0
) -> Iterator[PairRecord]:
    """Score batches and yield a record a pair; nothing is kept, so memory does not depend on the number of pairs.

    Args:
        batches: collated batches of 2P sequences, chosen first (``trainer.get_eval_dataloader()`` gives them).
        score: such as ``trainer.score``: per-token scores with masks.
        objective: gives losses, rewards and what each token adds to them (``trainer.objective``).
        tokenizer: gives the tokens' text.
        group: what the pairs are counted under.
        first: number of the first pair, for batches without ``row_id``; with it, the row's number is taken.
    """
    special = frozenset(tokenizer.all_special_ids)
    for batch in batches:
        scores = score(batch)
        with torch.no_grad():
            result = objective(scores)
        pairs = len(batch["input_ids"]) // 2
        numbers = batch["row_id"].tolist() if "row_id" in batch else list(range(first, first + pairs))
        first += pairs
        columns = [_columns(side, objective, is_chosen) for side, is_chosen in _sides(scores)]
        rewards = [result.chosen_rewards.tolist(), result.rejected_rewards.tolist()]
        for pair in range(pairs):
            chosen, rejected = (
                _side(batch, pair + which * pairs, pair, own, reward[pair], tokenizer, special)
                for which, (own, reward) in enumerate(zip(columns, rewards, strict=True))
            )
            prompt, prompt_ids = _prompt(batch, pair, tokenizer)
            loss, beta = float(result.loss[pair]), float(objective.beta)
            yield PairRecord(int(numbers[pair]), group, prompt, prompt_ids, chosen, rejected, loss, beta)


def collect_rows(trainer: Any, rows: Sequence[dict[str, Any]]) -> Iterator[PairRecord]:
    """Records of rows that a trainer has prepared, in its evaluation batches. Every process must ask for the same rows."""
    size = trainer.args.per_device_eval_batch_size
    batches = (trainer.data_collator(list(rows[first : first + size])) for first in range(0, len(rows), size))
    return collect(batches, trainer.score, trainer.objective, trainer.processing_class)


def _sides(scores: PairScores) -> tuple[tuple[TokenScores, bool], tuple[TokenScores, bool]]:
    return (scores.chosen, True), (scores.rejected, False)


@torch.no_grad()
def _columns(side: TokenScores, objective: Objective, is_chosen: bool) -> dict[str, Tensor]:
    """What one side has, (P, T) on the CPU each, and ``keep``, where the response is."""
    found: dict[str, Tensor | None] = {
        "reward_mask": side.reward_mask if objective.reads_masks else None,
        "kl_mask": side.kl_mask if objective.reads_masks else None,
        "log_ratio": None if side.ref_logps is None else side.log_ratios(),
        "kl": side.kl,
    }
    try:
        found["contribution"] = objective.token_rewards(side, is_chosen)
    except NotImplementedError:  # an objective of a user's own that does not say
        found["contribution"] = None
    columns = {name: values.float().cpu() for name, values in found.items() if values is not None}
    return columns | {"keep": side.response_mask.cpu()}


def _side(
    batch: Batch,
    row: int,
    pair: int,
    columns: dict[str, Tensor],
    reward: float,
    tokenizer: Any,
    special: frozenset[int],
) -> SideRecord:
    keep = columns["keep"][pair]
    ids = batch["input_ids"][row, 1:].cpu()[keep]
    marks = np.array([token in special for token in ids.tolist()], dtype=bool)
    # decoded behind its prompt, so that the first space is the one that the model saw
    places = real_tokens(batch, row)
    start = response_start(batch, row)
    before = batch["input_ids"][row, [place for place in places if place < start][-_CONTEXT:]].tolist()
    text, spans = token_spans(tokenizer, [*before, *ids.tolist()])
    own = spans[len(spans) - len(ids) :]
    pieces = [
        tokenizer.convert_ids_to_tokens(int(token)) if is_special else text[start:end]
        for token, (start, end), is_special in zip(ids.tolist(), own, marks, strict=True)
    ]
    values = {name: _floats(column[pair][keep]) for name, column in columns.items() if name != "keep"}
    return SideRecord(_integers(ids), tuple(pieces), marks, float(reward), **values)


def _prompt(batch: Batch, row: int, tokenizer: Any) -> tuple[str, Integers]:
    start = response_start(batch, row)
    places = [place for place in real_tokens(batch, row) if place < start]
    ids = batch["input_ids"][row, places].cpu()
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text, _integers(ids)


def _floats(values: Tensor) -> Floats:
    found: Floats = values.numpy().astype(np.float32)
    return found


def _integers(values: Tensor) -> Integers:
    found: Integers = values.numpy().astype(np.int64)
    return found
