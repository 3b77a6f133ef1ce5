"""Running the reference over rows and keeping what the plan asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsepo.masks import Masker
from sparsepo.scoring import reference_values

from ..step import ReferenceView, compute_masks
from ..trl_bridge import gathered_heads
from .plan import EXPECTATION, CachePlan
from .reading import sequence_identity
from .store import Block


@dataclass(frozen=True)
class RowSource:
    """How rows become batches and batches views of the reference.

    Args:
        rows: a prepared data set, columns that the collator reads only.
        row_tokens: response tokens of each row, (rows,): rows of like length share a batch.
        collate: rows → batch on the reference's device.
        batch_size: pairs of a batch.
        view_of: runs the reference over a batch.
        masker: the run's masker.
        products: context in which the scorer multiplies by the head: the run's mixed precision, or none.
    """

    rows: Any
    row_tokens: np.ndarray
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    batch_size: int
    view_of: Callable[[dict[str, Any]], ReferenceView]
    masker: Masker | None
    products: Callable[[], AbstractContextManager[Any]] = nullcontext

    def batches(self, block: Block) -> Iterator[list[int]]:
        """Row numbers of a block's batches: the same for every run and process."""
        order = sorted(range(block.first, block.last), key=lambda row: (-int(self.row_tokens[row]), row))
        for first in range(0, len(order), self.batch_size):
            yield order[first : first + self.batch_size]

    def count(self, block: Block) -> int:
        """Number of a block's batches."""
        return -(-(block.last - block.first) // self.batch_size)


def compute_block(source: RowSource, plan: CachePlan, block: Block, tick: Callable[[], None]) -> dict[str, Tensor]:
    """The arrays of a block's sequences in order, on the CPU.

    Args:
        source: the rows and the reference.
        plan: what is kept.
        block: the rows.
        tick: called after each batch.
    """
    found: dict[int, dict[str, Tensor]] = {}  # place of a sequence in the block → its arrays
    for numbers in source.batches(block):
        batch = source.collate([source.rows[number] for number in numbers])
        arrays = kept_values(source, plan, batch)
        lengths = arrays["length"].tolist()
        tokens = {name: arrays[name].split(lengths) for name in plan.fields()}
        for row in range(2 * len(numbers)):
            side, pair = divmod(row, len(numbers))
            found[2 * (numbers[pair] - block.first) + side] = {
                "identity": arrays["identity"][row : row + 1],
                "length": arrays["length"][row : row + 1],
                **{name: parts[row] for name, parts in tokens.items()},
            }
        tick()
    in_order = [found[place] for place in range(2 * (block.last - block.first))]
    return {name: torch.cat([arrays[name] for arrays in in_order]) for name in in_order[0]}


@torch.no_grad()
def kept_values(source: RowSource, plan: CachePlan, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What is kept of a batch: ``identity`` and ``length`` (R,), and the plan's arrays over its N response tokens."""
    view = source.view_of(batch)
    assert view.last_hidden is not None
    response = batch["completion_mask"][:, 1:].bool()
    hidden = view.last_hidden[:, :-1][response]
    with gathered_heads(*view.models), source.products():
        head = view.whole_head()
        assert head is not None
        values = reference_values(hidden, head, batch["input_ids"][:, 1:][response], plan.kl == EXPECTATION)
    kept: dict[str, Tensor] = {"logps": values.logps, "log_normaliser": values.log_normaliser, "hidden": hidden}
    if values.expected_weight is not None:
        kept["expected_weight"] = values.expected_weight
    if plan.layers:
        assert view.block_states is not None
        columns = slice(None, -1) if plan.position == "predicting" else slice(1, None)
        device = hidden.device  # a model that is spread over devices leaves its states on several
        states = [
            state[:, columns][response.to(state.device)].to(device) for state in view.block_states[-plan.layers :]
        ]
        kept["states"] = torch.stack(_of_one_type(states), dim=1)
    if plan.masks:
        assert source.masker is not None
        masks = compute_masks(source.masker, batch, view, None)
        reward, kl = masks.reward[response], masks.kl[response]
        kept |= {"reward_mask": reward, "kl_mask": kl, "mask": kl if source.masker.mask_on == "kl" else reward}
    arrays = {name: kept[name].to("cpu") for name in plan.fields()}
    return arrays | {"identity": sequence_identity(batch).to("cpu"), "length": response.sum(1).to("cpu")}


def _of_one_type(states: list[Tensor]) -> list[Tensor]:
    """States of the widest type among them, which holds them all exactly."""
    dtype = states[0].dtype
    for state in states:
        dtype = torch.promote_types(dtype, state.dtype)
    return [state.to(dtype) for state in states]
