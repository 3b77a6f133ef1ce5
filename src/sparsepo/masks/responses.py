"""Response tokens in compact form, and the row operations that gates over a whole response need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """Which of B rows each of N compact tokens belongs to.

    Args:
        rows: row of each token, int64, (N,), ascending, as ``nonzero`` gives them. Tokens of a row stand in their order;
            where padding lies is not known here and so cannot matter.
    """

    rows: Tensor

    def lengths(self) -> Tensor:
        """Tokens of each row, int64, (B,)."""
        return torch.bincount(self.rows)

    def places(self) -> tuple[Tensor, Tensor]:
        """Row and rank within the row of each token, (N,) each."""
        lengths = self.lengths()
        first = lengths.cumsum(0) - lengths
        return self.rows, torch.arange(len(self.rows), device=self.rows.device) - first[self.rows]

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """(N,) → (B, M), M the longest response; ``fill`` after a response's end. Gradients flow."""
        lengths = self.lengths()
        longest = int(lengths.max()) if len(lengths) else 0
        return values.new_full((len(lengths), longest), fill).index_put(self.places(), values)

    def gather(self, values: Tensor) -> Tensor:
        """(B, M) → (N,), the inverse of :meth:`spread`."""
        return values[self.places()]

    def counted(self, like: Tensor) -> Tensor:
        """Tokens of each row in the precision of ``like``, (B, 1)."""
        return self.lengths().to(like.dtype)[:, None]
