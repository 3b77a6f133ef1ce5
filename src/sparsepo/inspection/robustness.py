"""Do masks and implicit rewards hold under noise, and can words with large masks be used against them?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.rules import text_of
from sparsepo.evaluation.ranking import spearman

from .alignment import TextsDifferError, weight_spans
from .document import write_whole
from .perturb import CHANGES, insert_words, perturb, words_of_text
from .records import PairRecord, SideRecord
from .tally import Tally

Row = dict[str, Any]
ScoreRows = Callable[[Sequence[Row], str], list[PairRecord]]  # rows, what they are → a record each, in order
RATES = (0.05, 0.1, 0.2, 0.4)
INSERTED = (1, 2, 4, 8)
LEXICON = 20  # words that the adversary chooses from
LEAST_COUNT = 3  # of a word in the texts that it is chosen from


@dataclass(frozen=True)
class Condition:
    """One row of a table: a change and how much of it."""

    name: str
    amount: float

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.name.replace(' ', '_')}-{self.amount:g}"


class Results:
    """Numbers of conditions in a folder: those that are there are not measured again.

    Args:
        folder: None: they are kept in memory only.
        identity: what they depend on (model, data, settings); results of another identity are refused.

    Raises:
        ValueError: the folder holds results of something else.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._kept: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        path = folder / "identity.json"
        wanted = json.loads(json.dumps(dict(identity), default=str))
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there != wanted:
                changed = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
                raise ValueError(f"{folder} holds results of other {', '.join(changed)}; give another folder.")
        else:
            write_whole(path, json.dumps(wanted, indent=1) + "\n")

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The numbers of a condition, measured if they are not there."""
        if key in self._kept:
            return self._kept[key]
        path = None if self.folder is None else self.folder / "conditions" / f"{key}.json"
        if path is not None and path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        else:
            found = measure()
            if path is not None:
                write_whole(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
        self._kept[key] = found
        return found


def with_text(row: Row, side: str, text: str) -> Row:
    """The row with another response text; of messages the last one's."""
    value: Any = text
    if not isinstance(row[side], str):
        value = [*row[side][:-1], {**row[side][-1], "content": text}]
    return {**row, side: value}


def noise(
    rows: Sequence[Row],
    score: ScoreRows,
    results: Results,
    *,
    changes: Sequence[str] = tuple(CHANGES),
    rates: Sequence[float] = RATES,
    seed: int = 0,
    mask: str = "reward_mask",
) -> dict[str, dict[str, Any]]:
    """Reward accuracy, margin and masks of rows whose responses (both) carry noise, by condition; "none" first.

    Args:
        rows: preference rows.
        score: makes records of them.
        results: keeps what is done.
        changes: of :data:`sparsepo.inspection.perturb.CHANGES`.
        rates: probability that a word is changed.
        seed: of the noise.
        mask: which mask is compared, word by word, with that of the clean text.
    """
    records = cache(lambda: score(rows, "clean text"))  # only if anything is left to be done
    found = {"none": results.get("none", lambda: accuracy(records()))}
    for name in changes:
        for rate in rates:
            condition = Condition(name, rate)

            def measure(condition: Condition = condition) -> dict[str, Any]:
                return _noisy(rows, score, records(), condition, seed, mask)

            found[condition.key] = results.get(condition.key, measure)
    return found


def _noisy(
    rows: Sequence[Row], score: ScoreRows, clean: Sequence[PairRecord], condition: Condition, seed: int, mask: str
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, *condition.key.encode()])
    changed_rows, maps, changed, words = [], [], 0, 0
    for row in rows:
        own = {}
        for side in ("chosen", "rejected"):
            words += len(words_of_text(text_of(row[side])))
            noisy = perturb(text_of(row[side]), CHANGES[condition.name], condition.amount, rng)
            row = with_text(row, side, noisy.text)
            own[side] = noisy.words
            changed += noisy.changed
        changed_rows.append(row)
        maps.append(own)
    records = score(changed_rows, f"{condition.name} {condition.amount:g}")
    found = accuracy(records, clean)
    tally = Tally()
    for row, noisy_row, before, after, own in zip(rows, changed_rows, clean, records, maps, strict=True):
        for name in ("chosen", "rejected"):
            value = _mask_correlation(
                before.sides()[name], after.sides()[name], text_of(row[name]), text_of(noisy_row[name]), own[name], mask
            )
            if value is not None:
                tally.add_sums("mask", 1, value)
    found["mask"] = tally.estimate("mask").to_json() if "mask" in tally else None
    found["words_changed"] = changed / max(words, 1)
    return found


def _mask_correlation(
    before: SideRecord,
    after: SideRecord,
    old_text: str,
    new_text: str,
    words: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    mask: str,
) -> float | None:
    """Rank correlation of the masks of the words that are left, before and after."""
    x, y = before.values(mask), after.values(mask)
    if x is None or y is None or not len(x) or not len(y):
        return None
    try:
        old, new = _by_character(before, x, old_text), _by_character(after, y, new_text)
    except TextsDifferError:
        return None
    # of words that max_length cut off nothing is known
    ends = (len(before.text), len(after.text))
    pairs = [(old[a:b].max(), new[c:d].max()) for (a, b), (c, d) in words if a < b <= ends[0] and c < d <= ends[1]]
    return spearman(*zip(*pairs, strict=True)) if len(pairs) > 1 else None


def _by_character(side: SideRecord, values: Any, text: str) -> np.ndarray[Any, Any]:
    at = np.zeros(len(text))
    for start, end, weight in weight_spans(side, values, text):
        at[start:end] = weight
    return at


def accuracy(records: Sequence[PairRecord], clean: Sequence[PairRecord] | None = None) -> dict[str, Any]:
    """Reward accuracy (ties count as wrong), margin and zeros, with intervals over pairs; with ``clean`` also the share of
    pairs whose order is no longer that of the clean text."""
    tally = Tally()
    for place, record in enumerate(records):
        tally.add_sums("accuracy", 1, float(record.margin > 0))
        tally.add_sums("margin", 1, record.margin)
        if (zeros := record.zeros()) is not None:
            tally.add_sums("zeros", 1, zeros)
        if clean is not None:
            tally.add_sums("flipped", 1, float((record.margin > 0) != (clean[place].margin > 0)))
            tally.add_sums("accuracy_difference", 1, float(record.margin > 0) - float(clean[place].margin > 0))
    return _estimates(tally)


def _estimates(tally: Tally) -> dict[str, Any]:
    return {
        name: (tally.share(name) if name in ("accuracy", "flipped", "flips") else tally.estimate(name)).to_json()
        for name in tally
    }


def lexicon_of(
    records: Sequence[PairRecord], mask: str = "reward_mask", size: int = LEXICON, seed: int = 0
) -> dict[str, list[str]]:
    """From pairs that the attack is not tried on: the words with the largest mean mask, those that add most to the reward,
    and as a control words drawn among all.

    A word's mask is the largest of its tokens'; what it adds is their sum.

    Raises:
        ValueError: no mask, or too few words that occur often enough.
    """
    masks, parts = Tally(), Tally()
    for record in records:
        for side in record.sides().values():
            values = side.values(mask)
            if values is None:
                raise ValueError(f"These records have no {mask}: an attack by masks needs one.")
            offsets = side.offsets()
            for word, (start, end) in words_of_text(side.text):
                touched = (offsets[:, 0] < end) & (offsets[:, 1] > start) & ~side.special
                if not touched.any() or not word.isalpha():
                    continue
                masks.add_sums(word.lower(), 1, float(values[touched].max()))
                if side.contribution is not None:
                    parts.add_sums(word.lower(), 1, float(side.contribution[touched].sum()))
    known = [word for word in masks if masks.totals(word)[0] >= LEAST_COUNT]
    if len(known) < 2 * size:
        raise ValueError(
            f"Only {len(known)} words occur {LEAST_COUNT} times or more; {2 * size} are needed: give more pairs."
        )
    kinds = {"largest masks": sorted(known, key=lambda word: -masks.estimate(word).value)[:size]}
    if any(True for _ in parts):
        kinds["largest contributions"] = sorted(known, key=lambda word: -parts.estimate(word).value)[:size]
    order = np.random.default_rng(seed).permutation(len(known))[:size]
    kinds["control: any words"] = [known[int(place)] for place in order]
    return kinds


def adversarial(
    rows: Sequence[Row],
    score: ScoreRows,
    results: Results,
    lexicon: Callable[[], dict[str, list[str]]],
    *,
    counts: Sequence[int] = INSERTED,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Insert words into the *rejected* responses: how often does the implicit reward now prefer them?

    Args:
        rows: pairs that the lexicon was not made of.
        score: makes records of rows.
        results: keeps what is done.
        lexicon: called once if anything remains to be done.
        counts: words inserted.
        seed: of the choice of words and places.
    """
    words = results.get("lexicon", lexicon)
    records = cache(lambda: score(rows, "clean text"))  # only if anything is left to be done
    found = {"none": results.get("none", lambda: accuracy(records()))}
    for name, own in words.items():
        for count in counts:
            condition = Condition(name.replace("control: ", ""), count)

            def measure(condition: Condition = condition, own: list[str] = own) -> dict[str, Any]:
                rng = np.random.default_rng([seed, *condition.key.encode()])
                attacked = []
                for row in rows:
                    chosen = [own[int(i)] for i in rng.integers(len(own), size=int(condition.amount))]
                    attacked.append(with_text(row, "rejected", insert_words(text_of(row["rejected"]), chosen, rng)))
                return _attacked(score(attacked, condition.key), records())

            found[condition.key] = results.get(condition.key, measure)
    return found


def _attacked(records: Sequence[PairRecord], clean: Sequence[PairRecord]) -> dict[str, Any]:
    tally = Tally()
    for before, after in zip(clean, records, strict=True):
        if before.margin > 0:
            tally.add_sums("flips", 1, float(after.margin <= 0))
        tally.add_sums("rejected_reward_change", 1, after.rejected.reward - before.rejected.reward)
    return accuracy(records, clean) | _estimates(tally)
