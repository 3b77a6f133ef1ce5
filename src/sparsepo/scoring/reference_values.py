"""What a cache keeps of the reference at a token: its log-probability, its log-normaliser and the mean row of its head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import LMHead, operand_head
from .products import times_weight
from .rows import TILE_ROWS, TILE_ROWS_ON_GPUS, RowBuffers
from .triton_rows import row_backend


@dataclass(frozen=True)
class ReferenceValues:
    """Values of N tokens, float32 (float64 for a float64 reference).

    Args:
        logps: log π_ref of the targets, (N,).
        log_normaliser: lse of the logits, (N,).
        expected_weight: E_q[W], q the distribution over the vocabulary, (N, H); None unless asked for.
    """

    logps: Tensor
    log_normaliser: Tensor
    expected_weight: Tensor | None


@torch.no_grad()
def reference_values(hidden: Tensor, head: LMHead, targets: Tensor, with_expectation: bool) -> ReferenceValues:
    """The reference's values from its last hidden states; logits exist for some rows at a time only.

    Inside an autocast context they are formed from the operands that the fused scorer multiplies there.

    Args:
        hidden: the last hidden states at the predicting positions, (N, H).
        head: the reference's head.
        targets: token ids, (N,).
        with_expectation: also form E_q[W], with all digits: the KL is a small difference of numbers formed with it.
    """
    dtype = head.row_dtype(hidden)
    head = operand_head(head)
    weight = head.weight
    hidden, targets = hidden.to(weight.device), targets.to(weight.device)
    arithmetic = row_backend(weight.device)
    buffers = RowBuffers(len(weight), dtype, weight.device)
    tile = TILE_ROWS if weight.device.type == "cpu" else TILE_ROWS_ON_GPUS
    logps, normaliser = (torch.empty(len(hidden), dtype=dtype, device=weight.device) for _ in range(2))
    expected = logps.new_empty(len(hidden), weight.shape[1]) if with_expectation else None
    with torch.autocast(hidden.device.type, enabled=False):
        for first in range(0, len(hidden), tile):
            rows = slice(first, first + tile)
            logits = buffers.project("reference", head, hidden[rows])
            found = arithmetic.statistics(logits, None, targets[rows], False, False)
            logps[rows], normaliser[rows] = found.logps, found.log_normaliser
            if expected is not None:
                expected[rows] = times_weight(arithmetic.probabilities(logits, found), weight, exact=True)
    return ReferenceValues(logps, normaliser, expected)
