"""Pairs in a notebook, or in a file of their own: the page of ``sparsepo inspect``."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from sparsepo.data.content import ContentFilter

from .collect import collect
from .page import page
from .records import PairRecord

HEIGHT = 720


class Pairs:
    """Inspected pairs; the last line of a notebook cell shows them.

    Args:
        records: the pairs, in order.
        title: what the page says on top.
        words: masks offensive words where the pairs are shown.
    """

    def __init__(
        self, records: Iterable[PairRecord], title: str = "Token masks", words: ContentFilter | None = None
    ) -> None:
        self.records, self.title, self.words = list(records), title, words

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> PairRecord:
        return self.records[number]

    def to_html(self) -> str:
        """One self-contained page."""
        return page(self.records, title=self.title, words=self.words)[0]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; returns its path."""
        Path(path).write_text(self.to_html(), encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        # sandboxed: a row of a dataset is untrusted, and the notebook's own page is not
        inner = html.escape(self.to_html(), quote=True)
        return (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:{HEIGHT}px;border:0" srcdoc="{inner}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Pairs({len(self.records)} pairs; in a notebook they are shown, save(path) writes a page)"


def show(
    trainer: Any,
    dataset: Any = None,
    *,
    limit: int = 50,
    title: str = "Token masks",
    words: ContentFilter | None = None,
) -> Pairs:
    """The masks of a trainer's pairs, for a notebook.

    Args:
        trainer: a :class:`sparsepo.SparsePOTrainer`, trained or not.
        dataset: preference pairs that the trainer has prepared (``trainer.train_dataset``, ``trainer.eval_dataset``); None:
            its evaluation set, or where it has none its training set.
        limit: at most so many pairs.
        title: of the page.
        words: masks offensive words, as ``sparsepo.data.content.ContentFilter()``.

    Raises:
        ValueError: ``limit`` is below 1, or there are several evaluation sets and none was named.
    """
    if limit < 1:
        raise ValueError(f"limit={limit!r} must be at least 1.")
    if dataset is None:
        dataset = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    if isinstance(dataset, dict):
        raise ValueError(
            f"There are several sets ({', '.join(dataset)}): give one of them, trainer.eval_dataset[NAME]."
        )
    batches = trainer.get_eval_dataloader(dataset)
    records = collect(batches, trainer.score, trainer.objective, trainer.processing_class)
    return Pairs(islice(records, limit), title, words)
