"""Statistics of masks over many pairs, added up while the records come: sparsity and mass by side, position, class, type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsepo.evaluation.ranking import spearman

from .records import PairRecord, SideRecord
from .tally import Moments, Tally
from .token_classes import Tagger, classes_of, code_classes, lexer_of, speech_classes

MASKS = ("reward_mask", "kl_mask")
POSITIONS = ("1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", "65–128", "129–256", "257–512", "over 512")
TENTHS = tuple(f"{start}–{start + 10} %" for start in range(0, 100, 10))
FREQUENCIES = ("once", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128 or more")
TOP_SHARE = 0.2  # of a response's tokens: those with the largest masks
NOISE = 1e-4  # nats: log-ratios and KL of a model that is its own reference are rounding
SAMPLE = 20_000  # tokens kept for histograms and clouds


class Statistics:
    """Adds up records of one group (a task, a run).

    Args:
        name: of the group.
        language: a programming language: adds what each token is in it.
        tagger: adds parts of speech.
        seed: of the sample of tokens that clouds and histograms show.
    """

    def __init__(
        self, name: str = "", language: str | None = None, tagger: Tagger | None = None, seed: int = 0
    ) -> None:
        if language is not None:
            lexer_of(language)  # an unknown language is refused before hours of scoring
        self.name, self.language, self.tagger = name, language, tagger
        self.pairs = self.tokens = 0
        self._means: dict[str, dict[str, Tally]] = {}  # mask → dimension → label
        self._zeros: dict[str, dict[str, Tally]] = {}
        self._pieces: dict[str, str] = {}  # token id → its text where it was first seen
        self._responses: dict[str, Tally] = {mask: Tally() for mask in MASKS}  # one number a response or pair
        self._agreement, self._both = Moments(), Tally()
        self._same = True
        self._random = np.random.default_rng(seed)
        self._sample: list[tuple[float, ...]] = []  # reward mask, KL mask, |log-ratio|
        self._offered = 0

    def add(self, record: PairRecord) -> None:
        """Add a pair."""
        self.pairs += 1
        self.tokens += len(record.chosen) + len(record.rejected)
        sides = [side for side in record.sides().values() if len(side)]
        if not sides:
            return
        labels = [self._labels(name, side) for name, side in record.sides().items() if len(side)]
        joined = {key: [label for own in labels for label in own[key]] for key in labels[0]}
        for side in sides:
            self._pieces.update(
                (str(token), piece)
                for token, piece in zip(side.token_ids.tolist(), side.pieces, strict=True)
                if str(token) not in self._pieces
            )
        for mask in MASKS:
            values = [side.values(mask) for side in sides]
            if any(own is None for own in values):
                continue
            self._add_mask(mask, np.concatenate([own for own in values if own is not None]), joined)
            self._add_responses(mask, record)
        self._add_agreement(sides)
        self._keep(sides)

    def _labels(self, name: str, side: SideRecord) -> dict[str, list[str]]:
        count = len(side)
        found = {
            "all": ["all"] * count,
            "side": [name] * count,
            "class": classes_of(side),
            "position": [POSITIONS[min(int(np.ceil(np.log2(place))), 10)] for place in range(1, count + 1)],
            "tenth": [TENTHS[min(10 * place // count, 9)] for place in range(count)],
            "type": [str(token) for token in side.token_ids.tolist()],
        }
        if self.language is not None:
            found["code"] = code_classes(side, self.language)
        if self.tagger is not None:
            found["speech"] = speech_classes(side, self.tagger)
        return found

    def _add_mask(self, mask: str, values: NDArray[np.float32], labels: dict[str, list[str]]) -> None:
        means, zeros = self._means.setdefault(mask, {}), self._zeros.setdefault(mask, {})
        for dimension, own in labels.items():
            means.setdefault(dimension, Tally()).add(own, values)
            zeros.setdefault(dimension, Tally()).add(own, values == 0)

    def _add_responses(self, mask: str, record: PairRecord) -> None:
        """Numbers that a response or a pair has one of."""
        tally = self._responses[mask]
        tops = []
        for side in record.sides().values():
            values = side.values(mask)
            if values is None or not len(values):
                continue
            for quantity in ("log_ratio", "kl"):
                other = side.values(quantity)
                is_noise = other is None or np.abs(other).max() < NOISE
                found = None if other is None or is_noise else spearman(values, np.abs(other))
                if found is not None:
                    tally.add_sums(quantity, 1, found)
            tops.append(top_types(side, values))
        if len(tops) == 2 and (union := tops[0] | tops[1]):
            tally.add_sums("overlap", 1, len(tops[0] & tops[1]) / len(union))
            ids = [set(side.token_ids.tolist()) for side in record.sides().values()]
            tally.add_sums("overlap of all", 1, len(ids[0] & ids[1]) / len(ids[0] | ids[1]))
            difference = [float(np.mean(side.values(mask))) for side in record.sides().values()]  # type: ignore[arg-type]
            tally.add_sums("chosen minus rejected", 1, difference[0] - difference[1])

    def _add_agreement(self, sides: Sequence[SideRecord]) -> None:
        for side in sides:
            reward, kl = side.reward_mask, side.kl_mask
            if reward is None or kl is None:
                continue
            self._same = self._same and bool(np.array_equal(reward, kl))
            self._agreement.add(reward, kl)
            states = np.where(
                reward > 0, np.where(kl > 0, "both", "reward only"), np.where(kl > 0, "KL only", "neither")
            )
            for state in ("both", "reward only", "KL only", "neither"):
                self._both.add_sums(state, len(side), float((states == state).sum()))

    def _keep(self, sides: Sequence[SideRecord]) -> None:
        """Reservoir sampling: every token so far is in the sample with the same probability."""
        for side in sides:
            empty = np.full(len(side), np.nan, np.float32)
            columns = [side.reward_mask, side.kl_mask, side.log_ratio]
            rows = np.stack([empty if own is None else own for own in columns], axis=1)
            rows[:, 2] = np.abs(rows[:, 2])
            for row in rows.tolist():
                self._offered += 1
                if len(self._sample) < SAMPLE:
                    self._sample.append(tuple(row))
                elif (place := int(self._random.integers(self._offered))) < SAMPLE:
                    self._sample[place] = tuple(row)

    def sample(self) -> NDArray[np.float64]:
        """A fair sample of the tokens: reward mask, KL mask, |log-ratio|, (n, 3); NaN for what there is none of."""
        return np.array(self._sample, dtype=np.float64).reshape(-1, 3)

    def summary(self, types: int = 15, least_count: int = 5) -> dict[str, Any]:
        """Everything as JSON types; docs/inspect.md names the fields.

        Args:
            types: so many most and least weighted token types.
            least_count: of the occurrences that a type needs to be named.
        """
        masks = [mask for mask in MASKS if mask in self._means]
        same = self._same and len(masks) == 2
        return {
            "name": self.name,
            "pairs": self.pairs,
            "tokens": self.tokens,
            "masks": {mask: self._of_mask(mask, types, least_count) for mask in (masks[:1] if same else masks)},
            "common": same,
            "agreement": None
            if len(masks) < 2
            else {
                "identical": self._same,
                "correlation": 1.0 if self._same else self._agreement.correlation(),
                "shares": {state: own.to_json() for state, own in self._both.estimates().items()},
            },
        }

    def _of_mask(self, mask: str, types: int, least_count: int) -> dict[str, Any]:
        means, zeros, responses = self._means[mask], self._zeros[mask], self._responses[mask]
        order: dict[str, Iterable[str] | None] = {
            "position": POSITIONS,
            "tenth": TENTHS,
            "side": ("chosen", "rejected"),
        }
        found: dict[str, Any] = {
            "mean": means["all"].estimate("all").to_json(),
            "zeros": zeros["all"].estimate("all").to_json(),
        }
        for dimension in ("side", "class", "code", "speech", "position", "tenth"):
            if dimension in means:
                labels = order.get(dimension)
                found[dimension] = {
                    label: {"mean": own.to_json(), "zeros": zeros[dimension].estimate(label).to_json()}
                    for label, own in means[dimension].estimates(labels).items()
                }
        found["frequency"] = self._by_frequency(mask)
        found["types"] = self._types(mask, types, least_count)
        found["responses"] = {label: own.to_json() for label, own in responses.estimates().items()}
        return found

    def _by_frequency(self, mask: str) -> dict[str, Any]:
        """By how often a token type occurs in these responses; the interval is over types."""
        parts = {}
        for name, tally in (("mean", self._means[mask]["type"]), ("zeros", self._zeros[mask]["type"])):
            binned = Tally()
            for token in tally:
                count, total = tally.totals(token)
                binned.add_sums(FREQUENCIES[min(int(np.log2(count)), len(FREQUENCIES) - 1)], count, total)
            parts[name] = binned.estimates(FREQUENCIES)
        return {label: {name: parts[name][label].to_json() for name in ("mean", "zeros")} for label in parts["mean"]}

    def _types(self, mask: str, count: int, least_count: int) -> dict[str, list[dict[str, Any]]]:
        tally, zeros = self._means[mask]["type"], self._zeros[mask]["type"]
        own = [(token, tally.estimate(token)) for token in tally]
        own = sorted(((t, e) for t, e in own if e.count >= least_count), key=lambda pair: -pair[1].value)
        rows = [
            {"id": int(token), "piece": self._pieces[token], "zeros": zeros.estimate(token).value, **mean.to_json()}
            for token, mean in own
        ]
        return {"most": rows[:count], "least": rows[::-1][: min(count, max(0, len(rows) - count))]}


def top_types(side: SideRecord, values: NDArray[np.float32], share: float = TOP_SHARE) -> set[int]:
    """Ids of the tokens with the largest masks: a share of the response, at least one, none with a mask of zero."""
    order = np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]
    return set(side.token_ids[order[values[order] > 0]].tolist())


def summarise(
    records: Iterable[PairRecord], language: str | None = None, tagger: Tagger | None = None
) -> dict[str, Statistics]:
    """Statistics by group, in the order in which groups come."""
    found: dict[str, Statistics] = {}
    for record in records:
        if record.group not in found:
            found[record.group] = Statistics(record.group, language, tagger)
        found[record.group].add(record)
    return found
