"""TRL's preference collator, carrying row identities and per-token weights along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .trl_bridge import DataCollatorForPreference

ROW_ID = "row_id"
PAIR_WEIGHT = "sparsepo_pair_weight"
WEIGHT_COLUMNS = ("chosen_token_weights", "rejected_token_weights")


@dataclass
class PreferenceCollator(DataCollatorForPreference):
    """Adds to TRL's batch, where the rows have them:

    - ``row_id`` (P,): the row's number, int64;
    - ``sparsepo_pair_weight`` (P,): 1, and 0 for rows that only fill a batch;
    - ``token_weights`` (2P, S): weights of response tokens, zero elsewhere, cut like the tokens.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if ROW_ID in examples[0]:
            batch[ROW_ID] = torch.tensor([example[ROW_ID] for example in examples], dtype=torch.int64)
        if any(PAIR_WEIGHT in example for example in examples):
            batch[PAIR_WEIGHT] = torch.tensor([float(example.get(PAIR_WEIGHT, 1)) for example in examples])
        if WEIGHT_COLUMNS[0] in examples[0]:
            batch["token_weights"] = self._weights(examples, batch["input_ids"].shape[1])
        return batch

    def _weights(self, examples: list[dict[str, Any]], length: int) -> Tensor:
        rows = [[0.0] * len(e["prompt_ids"]) + list(e[column]) for column in WEIGHT_COLUMNS for e in examples]
        weights = torch.zeros(len(rows), length)
        for index, row in enumerate(rows):
            if self.max_length is not None:
                row = row[: self.max_length] if self.truncation_mode == "keep_start" else row[-self.max_length :]
            weights[index, : len(row)] = torch.tensor(row)
        return weights
