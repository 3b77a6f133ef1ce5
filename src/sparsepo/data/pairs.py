"""Scored completions and votes → preference pairs."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, get_args

from .errors import DataError
from .formats import HISTORY_NAMES, REWARD_NAMES, TEXT_NAMES, first_of, is_messages
from .joining import joined

Strategy = Literal["best_worst", "all", "threshold"]
Row = dict[str, Any]


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Args:
        strategy: ``best_worst``: one pair a prompt, its highest against its lowest reward; ``all``: every two
            completions of a prompt with different rewards; ``threshold``: as ``all``, and demands a margin.
        margin: least difference of the rewards of a pair; holds for every strategy.
        cap: most pairs of one prompt; which ones is drawn at random.
        seed: of the draw and of the order of the output. A prompt's draw depends on the seed and the prompt alone.
        joiner: what stands between prompt and text; see :func:`sparsepo.data.joining.joined`.
        dedupe: completions of a prompt with the same text count once, with the mean of their rewards.
        shuffle: put the pairs into a random (seeded) order; otherwise in the order of the prompts.
        finished_only: scored completions: leave out rows whose ``finished`` is false, which were cut off.
        min_ratio: votes only: least ratio of the higher to the lower score (2 is what SHP's authors advise).

    Raises:
        DataError: a setting out of range.
    """

    strategy: Strategy = "best_worst"
    margin: float = 0.0
    cap: int | None = None
    seed: int = 0
    joiner: str = "auto"
    dedupe: bool = True
    shuffle: bool = True
    min_ratio: float = 1.0
    finished_only: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise DataError(f"strategy={self.strategy!r} is unknown; choose from {', '.join(get_args(Strategy))}.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise DataError(f"margin={self.margin} must be a finite number of at least 0.")
        if self.strategy == "threshold" and self.margin == 0:
            raise DataError("strategy='threshold' pairs rewards that differ by at least the margin: set margin > 0.")
        if self.cap is not None and self.cap < 1:
            raise DataError(f"cap={self.cap} must be at least 1, or None for no cap.")
        if not (math.isfinite(self.min_ratio) and self.min_ratio >= 1):
            raise DataError(f"min_ratio={self.min_ratio} must be at least 1.")
        if self.joiner == "":
            raise DataError("joiner '' is empty; write 'none' to join texts as they stand.")


@dataclass
class PairReport:
    """What became of the rows: counts by reason, in rows or prompts as their names say."""

    rows: int = 0
    prompts: int = 0
    pairs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, row: int | None = None, by: int = 1) -> None:
        """Count something; keep the first row that it happened in."""
        self.counts[what] += by
        if row is not None:
            self.examples.setdefault(what, row)

    def lines(self) -> list[str]:
        """Sentences for a person."""
        first = f"{self.rows} rows, {self.prompts} prompts → {self.pairs} pairs"
        where = {what: f" (first: row {self.examples[what]})" if what in self.examples else "" for what in self.counts}
        return [first, *(f"{count} {what}{where[what]}" for what, count in self.counts.items() if count)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {"rows": self.rows, "prompts": self.prompts, "pairs": self.pairs, "counts": dict(self.counts)}


@dataclass(frozen=True)
class _Scored:
    text: str
    reward: float


def pairs_from_scored(
    rows: Iterable[Mapping[str, Any]], settings: PairSettings = PairSettings()
) -> tuple[list[Row], PairReport]:
    """Pairs of completions of the same prompt; the higher reward is chosen.

    Rows of a prompt need not stand together. Unusable rows (empty or missing text, reward not a finite number) are left
    out and counted. Ties make no pair.

    Args:
        rows: with prompt (text or messages), text (or completion, response) and reward (or score).

    Returns:
        Rows with ``prompt``, ``chosen``, ``rejected``, ``chosen_reward``, ``rejected_reward``, and the report.
    """
    report = PairReport()
    groups: dict[str, list[_Scored]] = {}
    prompts: dict[str, Any] = {}
    for number, row in enumerate(rows):
        report.rows += 1
        found = _scored(row, settings)
        if isinstance(found, str):
            report.note(found, number)
            continue
        key = prompt_key(row["prompt"])
        prompts.setdefault(key, row["prompt"])
        groups.setdefault(key, []).append(found)
    report.prompts = len(groups)
    pairs: list[Row] = []
    for key, completions in groups.items():
        pairs.extend(_pairs_of_prompt(key, prompts[key], completions, settings, report))
    return _ordered(pairs, settings, report), report


def pairs_from_votes(
    rows: Iterable[Mapping[str, Any]], settings: PairSettings = PairSettings()
) -> tuple[list[Row], PairReport]:
    """Pairs from votes between two answers, as in SHP (labels 1: answer A is preferred; 0: B).

    Without ``labels`` the higher score is preferred. ``strategy`` does not apply; margin, ratio and cap do where there
    are scores. The ratio is ``score_ratio`` if present, else the higher over the lower score.
    """
    report = PairReport()
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        report.rows += 1
        found = _vote(row, settings, report, number)
        if isinstance(found, str):
            report.note(found, number)
            continue
        groups.setdefault(found["prompt"], []).append(found)
    report.prompts = len(groups)
    pairs: list[Row] = []
    for key, candidates in groups.items():
        unique = list({(pair["chosen"], pair["rejected"]): pair for pair in reversed(candidates)}.values())[::-1]
        if settings.dedupe and len(unique) < len(candidates):
            report.note("repeated votes left out", by=len(candidates) - len(unique))
            candidates = unique
        pairs.extend(_capped(key, candidates, settings, report))
    return _ordered(pairs, settings, report), report


def split_by_prompt(pairs: list[Row], fraction: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Set pairs of a random (seeded) share of the prompts apart: no prompt is on both sides.

    Raises:
        DataError: the fraction is not in (0, 1), or there are fewer than two prompts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"eval_fraction={fraction} must lie between 0 and 1.")
    keys = list(dict.fromkeys(prompt_key(pair["prompt"]) for pair in pairs))
    if len(keys) < 2:
        raise DataError(f"{len(keys)} prompt(s) cannot be split into train and eval; leave eval_fraction out.")
    random.Random(seed).shuffle(keys)
    held = set(keys[: min(max(1, round(fraction * len(keys))), len(keys) - 1)])
    parts: tuple[list[Row], list[Row]] = ([], [])
    for pair in pairs:
        parts[prompt_key(pair["prompt"]) in held].append(pair)
    return parts


def prompt_key(prompt: Any) -> str:
    """A text that is the same for the same prompt, plain or conversational."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)


def _scored(row: Mapping[str, Any], settings: PairSettings) -> _Scored | str:
    """The completion of a row, or why there is none."""
    text_name, reward_name = first_of(TEXT_NAMES, row), first_of(REWARD_NAMES, row)
    prompt, text = row.get("prompt"), row.get(text_name) if text_name else None
    if not isinstance(prompt, str) and not is_messages(prompt):
        return "rows without a prompt left out"
    if not isinstance(text, str):
        return "rows whose text is missing or no text left out"
    if not text.strip():
        return "rows with an empty text left out"
    if settings.finished_only and row.get("finished") is False:
        return "rows that were cut off left out"
    reward = _number(row.get(reward_name)) if reward_name else None
    return "rows whose reward is no finite number left out" if reward is None else _Scored(text, reward)


def _pairs_of_prompt(
    key: str, prompt: Any, completions: list[_Scored], settings: PairSettings, report: PairReport
) -> list[Row]:
    if settings.dedupe:
        before = len(completions)
        completions = _deduped(completions)
        if before > len(completions):
            report.note("repeated completions merged", by=before - len(completions))
    ranked = sorted(completions, key=lambda one: -one.reward)  # stable: the earlier row first among equals
    candidates = [(ranked[0], ranked[-1])] if settings.strategy == "best_worst" else list(combinations(ranked, 2))
    kept = [
        (high, low)
        for high, low in candidates
        if high.reward > low.reward and high.reward - low.reward >= settings.margin and high.text != low.text
    ]
    if not kept:
        alone = len(completions) < 2
        report.note(f"prompts with {'one completion only' if alone else 'no two rewards far enough apart'}")
    return [_pair(prompt, high, low, settings) for high, low in _capped(key, kept, settings, report)]


def _deduped(completions: list[_Scored]) -> list[_Scored]:
    rewards: dict[str, list[float]] = {}
    for one in completions:
        rewards.setdefault(one.text, []).append(one.reward)
    return [_Scored(text, math.fsum(values) / len(values)) for text, values in rewards.items()]


def _pair(prompt: Any, high: _Scored, low: _Scored, settings: PairSettings) -> Row:
    rewards = {"chosen_reward": high.reward, "rejected_reward": low.reward}
    if is_messages(prompt):
        answers = [[{"role": "assistant", "content": one.text}] for one in (high, low)]
        return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], **rewards}
    joined_prompt, chosen = joined(prompt, high.text, settings.joiner)
    return {
        "prompt": joined_prompt,
        "chosen": chosen,
        "rejected": joined(prompt, low.text, settings.joiner)[1],
        **rewards,
    }


def _vote(row: Mapping[str, Any], settings: PairSettings, report: PairReport, number: int) -> Row | str:
    """The pair of one vote, or why there is none."""
    history = first_of(HISTORY_NAMES, row)
    texts: list[Any] = [row.get(history) if history else None, row.get("human_ref_A"), row.get("human_ref_B")]
    if any(not isinstance(text, str) or not text.strip() for text in texts):
        return "rows with a missing or empty text left out"
    prompt, *answers = texts
    scores = [_number(row.get("score_A")), _number(row.get("score_B"))]
    label = _number(row.get("labels"))
    if label is None and None not in scores:
        label = None if scores[0] == scores[1] else float(scores[0] > scores[1])  # type: ignore[operator]
    if label not in (0.0, 1.0):
        return "rows without a preference (labels must be 0 or 1, or the scores differ) left out"
    high, low = (0, 1) if label == 1 else (1, 0)
    if answers[high].strip() == answers[low].strip():
        return "rows with two equal answers left out"
    if None not in scores:
        if scores[high] < scores[low]:  # type: ignore[operator]
            report.note("rows whose label contradicts the scores (label kept)", number)
        if abs(scores[high] - scores[low]) < settings.margin:  # type: ignore[operator]
            return "rows below the margin left out"
    if settings.min_ratio > 1 and _ratio(row, scores) < settings.min_ratio:
        return "rows below the ratio left out"
    asked, chosen = joined(prompt, answers[high], settings.joiner)
    pair = {"prompt": asked, "chosen": chosen, "rejected": joined(prompt, answers[low], settings.joiner)[1]}
    return {**pair, "chosen_reward": scores[high], "rejected_reward": scores[low]}


def _ratio(row: Mapping[str, Any], scores: list[float | None]) -> float:
    given = _number(row.get("score_ratio"))
    if given is not None:
        return given
    if scores[0] is None or scores[1] is None:
        return 0.0
    low, high = sorted((scores[0], scores[1]))
    return high / low if low > 0 else math.inf if high > 0 else 0.0


def _capped(key: str, candidates: list[Any], settings: PairSettings, report: PairReport) -> list[Any]:
    if settings.cap is None or len(candidates) <= settings.cap:
        return candidates
    report.note("pairs above the cap left out", by=len(candidates) - settings.cap)
    picked = random.Random(f"{settings.seed}:{key}").sample(range(len(candidates)), settings.cap)
    return [candidates[index] for index in sorted(picked)]


def _ordered(pairs: list[Row], settings: PairSettings, report: PairReport) -> list[Row]:
    report.pairs = len(pairs)
    if settings.shuffle:
        random.Random(settings.seed).shuffle(pairs)
    return pairs


def _number(value: Any) -> float | None:
    """The value as a finite float; None for anything else (true and false count as 1 and 0)."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
