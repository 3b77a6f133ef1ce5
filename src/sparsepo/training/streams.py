"""Streams of rows over several processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from .collator import PAIR_WEIGHT


class FilledStream(IterableDataset):
    """A stream whose last batch is filled with rows of weight zero, so that every process gets as many batches.

    accelerate would fill it with the stream's first rows, unmarked, and they would count twice in losses and metrics; a
    stream of several files it would split by files, and processes whose files end early would leave the others waiting.

    Args:
        rows: the stream.
        multiple: rows in a batch of all processes together.
    """

    def __init__(self, rows: Any, multiple: int) -> None:
        self.rows = rows
        self.multiple = multiple

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count, row = 0, None
        for row in self.rows:
            count += 1
            yield row
        if row is not None:
            for _ in range(-count % self.multiple):
                yield {**row, PAIR_WEIGHT: 0.0}

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew, where the stream can."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
