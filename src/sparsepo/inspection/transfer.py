"""Does a mask learned in model A choose the same text in model B? By characters, across tokenizers, beside controls."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsepo.data.rules import text_of
from sparsepo.evaluation.ranking import spearman

from .alignment import Floats64, TextsDifferError, on_tokens, weight_spans
from .document import Document, figure_style, with_interval, write_whole
from .figures import errors_of
from .records import PairRecord, SideRecord
from .statistics import TOP_SHARE
from .tally import Tally

# what is compared with B's own mask
ROWS = {
    "A's mask": "A's mask, carried over by characters",
    "shuffled": "control: A's mask, shuffled within the response",
    "position": "control: A's mean mask at this place of a response",
    "rarity": "control: how rare the token is in these responses",
    "length": "control: characters of the token",
    "random": "control: random numbers",
}


class Transfer:
    """Adds up pairs of records of the same data from two models.

    Args:
        a: records of model A, the one whose mask is carried over.
        mask: ``reward_mask`` or ``kl_mask``.
        seed: of the controls that are drawn.
    """

    def __init__(self, a: Iterable[PairRecord], mask: str = "reward_mask", seed: int = 0) -> None:
        self.mask = mask
        self.a = {record.number: record for record in a}
        if not self.a:
            raise ValueError("Model A has no pair.")
        if any(
            side.values(mask) is None for record in self.a.values() for side in record.sides().values() if len(side)
        ):
            raise ValueError(f"Model A has no {mask}: its objective reads no mask.")
        self.pairs = self.responses = 0
        self.skipped: Counter[str] = Counter()
        self._random = np.random.default_rng(seed)
        self._rank, self._top = Tally(), Tally()
        self._profile = self._position_profile()

    def _position_profile(self) -> Floats64:
        """A's mean mask in twenty parts of a response."""
        tally = Tally()
        for record in self.a.values():
            for side in record.sides().values():
                values = side.values(self.mask)
                if values is not None and len(values):
                    tally.add([str(20 * place // len(values)) for place in range(len(values))], values)
        return np.array([tally.estimate(str(k)).value if str(k) in tally else 0.0 for k in range(20)])

    def compare(self, b: Sequence[PairRecord]) -> None:
        """Compare with B's records of the same rows.

        Raises:
            ValueError: B has no mask, or no pair that A has.
        """
        counts = Counter(int(token) for record in b for side in record.sides().values() for token in side.token_ids)
        for record in b:
            own = self.a.get(record.number)
            if own is None:
                self.skipped["not in A"] += 1
                continue
            self.pairs += 1
            for name, side in record.sides().items():
                self._compare(own.sides()[name], side, counts)
        if not self.pairs:
            raise ValueError("The two models share no pair: inspect the same data with both.")

    def _compare(self, a: SideRecord, b: SideRecord, counts: Mapping[int, int]) -> None:
        target, values = b.values(self.mask), a.values(self.mask)
        if not len(a) or not len(b):
            return
        if target is None or values is None:
            raise ValueError(f"Model B has no {self.mask}: its objective reads no mask.")
        text = max(a.text, b.text, key=len)
        try:
            spans = weight_spans(a, values, text)
            # what is no text, or a part of a character, stands at no character of its own
            words = ~b.special & np.array([bool(piece) for piece in b.pieces])
            scores = {
                "A's mask": on_tokens(spans, b, text),
                "shuffled": on_tokens(weight_spans(a, self._shuffled(a, values), text), b, text),
            }
        except TextsDifferError:
            self.skipped["texts differ"] += 1
            return
        places = 20 * np.arange(len(b)) // len(b)
        scores |= {
            "position": self._profile[places],
            "rarity": np.array([-math.log(counts[int(token)]) for token in b.token_ids]),
            "length": np.array([len(piece.strip()) for piece in b.pieces], dtype=np.float64),
            "random": self._random.random(len(b)),
        }
        self.responses += 1
        for name, own in scores.items():
            rank = spearman(own[words], target[words])
            if rank is not None:
                self._rank.add_sums(name, 1, rank)
            overlap = top_overlap(own[words], target[words])
            if overlap is not None:
                self._top.add_sums(name, 1, overlap)

    def _shuffled(self, side: SideRecord, values: NDArray[np.float32]) -> NDArray[np.float32]:
        found = values.copy()
        words = np.flatnonzero(~side.special)
        found[words] = values[self._random.permutation(words)]
        return found

    def summary(self) -> dict[str, Any]:
        """As JSON types: rank correlation and overlap of the largest fifth, of A's mask and of every control."""
        rows = {
            name: {
                "rank": self._rank.estimate(name).to_json() if name in self._rank else None,
                "top": self._top.estimate(name).to_json() if name in self._top else None,
            }
            for name in ROWS
        }
        return {
            "mask": self.mask,
            "pairs": self.pairs,
            "responses": self.responses,
            "skipped": dict(self.skipped),
            "top_share": TOP_SHARE,
            "rows": rows,
        }


def top_overlap(a: NDArray[Any], b: NDArray[Any], share: float = TOP_SHARE) -> float | None:
    """Share of b's k largest that are among a's k largest, k a share of the tokens; ties are shared out evenly.

    None where fewer than two tokens are given. Chance gives k/n.
    """
    n = len(a)
    if n < 2:
        return None
    k = max(1, round(share * n))
    return float((_membership(a, k) * _membership(b, k)).sum() / k)


def _membership(values: NDArray[Any], k: int) -> Floats64:
    """How far each is among the k largest: 1, 0, and between where ties straddle the border."""
    border = np.sort(values)[-k]
    above = values > border
    at = values == border
    found = above.astype(np.float64)
    found[at] = (k - above.sum()) / at.sum()
    return found


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the result."""
    header = ["compared with B's own mask", "rank correlation", f"in B's largest {summary['top_share']:.0%}"]
    rows = [
        [ROWS[name], with_interval(own["rank"]), with_interval(own["top"], share=True)]
        for name, own in summary["rows"].items()
    ]
    return header, rows


def write_transfer(summary: Mapping[str, Any], folder: str | os.PathLike[str], a: str, b: str) -> None:
    """Write ``transfer.html``, ``transfer.json`` and ``plots/``."""
    folder = Path(folder)
    document = Document("Mask transfer", f"{a} → {b}", folder / "plots")
    document.heading("Result")
    document.text(f"{summary['pairs']:,} pairs, {summary['responses']:,} responses compared, {summary['mask']}.")
    for reason, count in summary["skipped"].items():
        document.text(f"{count:,} left out: {reason}.")
    document.table(*table(summary))
    document.text(
        "Within each response, over its tokens of text, then averaged; 95 % intervals over responses. A mask that encodes "
        "position, rarity or length alone would do as well as that control does."
    )
    with figure_style() as pyplot:
        figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 2.7), sharey=True)
        for axes, key, label in zip(
            panels, ("rank", "top"), ("rank correlation", "overlap of the largest"), strict=True
        ):
            own = [(name, row[key]) for name, row in summary["rows"].items() if row[key] is not None]
            values, errors = errors_of([row for _, row in own])
            axes.barh(range(len(own)), values, xerr=errors, ecolor="#888888")
            axes.set_yticks(range(len(own)), [name for name, _ in own])
            axes.set_xlabel(label)
        panels[0].invert_yaxis()
        document.figure(figure, "transfer", "A's mask and the controls against B's own mask.")
    write_whole(folder / "transfer.json", json.dumps({"a": a, "b": b, **summary}, indent=1, allow_nan=False) + "\n")
    document.write(folder / "transfer.html")


def weighted_rows(
    rows: Iterable[dict[str, Any]], records: Iterable[PairRecord], mask: str = "reward_mask"
) -> Iterator[dict[str, Any] | None]:
    """Rows with A's mask as ``chosen_weights`` and ``rejected_weights``: spans of characters that ``mask=data`` reads with
    any tokenizer; None for a row that no record is of, or whose text is another.

    Args:
        rows: as the records were made of, in order; the number of a record is its row.
        records: of model A.
        mask: which one.
    """
    by_number = {record.number: record for record in records}
    for number, row in enumerate(rows):
        record = by_number.get(number)
        if record is None:
            yield None
            continue
        found = dict(row)
        try:
            for name, side in record.sides().items():
                values = side.values(mask)
                if values is None:
                    raise ValueError(f"The records have no {mask}.")
                text = text_of(row[name])
                # all zeros need a span too: an empty list would say that no token has a weight
                spans = weight_spans(side, values, text) or [(0, len(text), 0.0)][: len(text)]
                found[f"{name}_weights"] = [list(span) for span in spans]
        except TextsDifferError:
            yield None
            continue
        yield found
