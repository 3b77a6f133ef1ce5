"""Statistics are means over tokens with intervals over pairs, whatever the order in which records come."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo.evaluation.ranking import spearman
from sparsepo.inspection import PairRecord, SideRecord
from sparsepo.inspection.statistics import POSITIONS, Statistics, summarise, top_types
from sparsepo.inspection.tally import Moments, Tally
from sparsepo.inspection.token_classes import classes_of, code_classes, find_tagger, lexer_of, speech_classes


def side(pieces: list[str], mask: list[float] | None = None, kl: list[float] | None = None, special=()) -> SideRecord:
    count = len(pieces)
    ids = np.array([sum(map(ord, piece)) for piece in pieces], dtype=np.int64)
    marks = np.array([place in special for place in range(count)], dtype=bool)
    floats = [None if own is None else np.array(own, dtype=np.float32) for own in (mask, kl)]
    ratio = np.linspace(-1, 1, count, dtype=np.float32)
    return SideRecord(ids, tuple(pieces), marks, 0.0, floats[0], floats[1] if kl is not None else floats[0], ratio)


def pair(chosen: SideRecord, rejected: SideRecord, number: int = 0, group: str = "") -> PairRecord:
    return PairRecord(number, group, "p", np.zeros(1, np.int64), chosen, rejected, 0.5, 0.1)


@given(st.lists(st.lists(st.floats(0, 4, width=32), min_size=1, max_size=6), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_means_and_zeros_are_over_tokens_and_intervals_over_pairs(masks: list[list[float]]) -> None:
    statistics = Statistics()
    for number, mask in enumerate(masks):
        own = side(["a"] * len(mask), mask)
        statistics.add(pair(own, own, number))
    found = statistics.summary()["masks"]["reward_mask"]
    flat = np.concatenate([np.float32(mask) for mask in masks])
    assert found["mean"]["value"] == pytest.approx(float(flat.mean()), abs=1e-6)
    assert found["zeros"]["value"] == pytest.approx(float((flat == 0).mean()))
    assert found["mean"]["count"] == 2 * len(flat)
    assert found["mean"]["clusters"] == len(masks)
    # the textbook variance of a ratio estimator
    n, s = np.array([len(m) for m in masks]) * 2.0, np.array([2 * float(np.float32(m).sum()) for m in masks])
    residual = s - s.sum() / n.sum() * n
    half = 1.96 * np.sqrt((residual**2).sum() * len(n) / (len(n) - 1)) / n.sum()
    assert found["mean"]["high"] - found["mean"]["value"] == pytest.approx(half, abs=1e-5)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        tally = Tally()
        for _ in range(40):  # a pair's tokens share an effect: tokens alone would claim too much
            tally.add(["x"] * 10, rng.normal() + rng.normal(size=10))
        own = tally.estimate("x")
        covered += own.low <= 0 <= own.high
    assert 0.90 <= covered / 300 <= 0.98


def test_shares_keep_their_intervals_between_nothing_and_all() -> None:
    tally = Tally()
    for _ in range(20):
        tally.add_sums("never", 1, 0.0)
        tally.add_sums("always", 1, 1.0)
    never, always = tally.share("never"), tally.share("always")
    assert (never.value, never.low) == (0.0, 0.0)
    assert never.high == pytest.approx(0.1611, abs=1e-3)  # Wilson's for 0 of 20
    assert (always.low, always.high) == pytest.approx((1 - never.high, 1.0))


def test_one_pair_has_no_interval() -> None:
    own = side(["a", "b"], [0.0, 1.0])
    statistics = Statistics()
    statistics.add(pair(own, own))
    found = statistics.summary()["masks"]["reward_mask"]["mean"]
    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)
    json.dumps(statistics.summary(), allow_nan=False)


def test_sides_positions_types_and_frequencies() -> None:
    statistics = Statistics()
    for number in range(6):
        chosen = side([" good", " film", "."], [1.0, 0.5, 0.0])
        rejected = side([" bad", " film", "."], [0.8, 0.1, 0.0])
        statistics.add(pair(chosen, rejected, number))
    statistics.add(pair(side([" rare"], [2.0]), side(["."], [0.0]), 6))
    found = statistics.summary(types=2)["masks"]["reward_mask"]
    assert found["side"]["chosen"]["mean"]["value"] == pytest.approx((6 * 1.5 + 2) / 19)
    assert list(found["position"]) == list(POSITIONS[:3])
    assert found["position"]["3–4"]["zeros"]["value"] == 1.0
    assert [row["piece"] for row in found["types"]["most"]] == [" good", " bad"]
    assert [row["piece"] for row in found["types"]["least"]] == [".", " film"]
    assert found["frequency"]["once"]["mean"]["value"] == 2.0
    assert found["frequency"]["8–15"]["mean"]["count"] == 12 + 13  # " film" 12 times, "." 13
    assert found["responses"]["overlap of all"]["value"] == pytest.approx((6 * 0.5 + 0) / 7)
    assert found["responses"]["overlap"]["value"] == 0.0


def test_reward_and_kl_mask_are_compared() -> None:
    statistics = Statistics()
    own = side(["a", "b", "c", "d"], [1, 0, 1, 0], [1, 1, 0, 0])
    statistics.add(pair(own, own))
    agreement = statistics.summary()["agreement"]
    assert {state: share["value"] for state, share in agreement["shares"].items()} == dict.fromkeys(
        ("both", "reward only", "KL only", "neither"), 0.25
    )
    assert agreement["correlation"] == pytest.approx(0.0)
    common = Statistics()
    common.add(pair(side(["a"], [1.0]), side(["b"], [0.0])))
    found = common.summary()
    assert found["common"]
    assert list(found["masks"]) == ["reward_mask"]


def test_without_masks_and_without_tokens() -> None:
    statistics = Statistics()
    statistics.add(pair(side(["a"]), side([])))
    statistics.add(pair(side([]), side([])))
    assert statistics.summary() == {
        "name": "", "pairs": 2, "tokens": 1, "masks": {}, "common": False, "agreement": None,
    }  # fmt: skip


def test_the_sample_is_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsepo.inspection.statistics.SAMPLE", 200)
    statistics = Statistics()
    for number in range(200):
        own = side(["a"] * 10, [float(number >= 100)] * 10)
        statistics.add(pair(own, own, number))
    sample = statistics.sample()
    assert sample.shape == (200, 3)
    assert 0.35 < sample[:, 0].mean() < 0.65  # of both halves, not only of the first tokens


def test_groups_are_kept_apart() -> None:
    own = side(["a"], [1.0])
    found = summarise([pair(own, own, 0, "x"), pair(own, own, 0, "y"), pair(own, own, 1, "x")])
    assert {name: statistics.pairs for name, statistics in found.items()} == {"x": 2, "y": 1}


def test_classes() -> None:
    own = side([" won", "der", "ful", ",", " 1", "2", "\n\n", " it", "'s", "</s>", ""], special={9})
    expected = ["word start", "inside word", "inside word", "punctuation", "number", "number", "whitespace"]
    assert classes_of(own) == [*expected, "word start", "inside word", "special", "other"]


def test_classes_of_code() -> None:
    own = side(["def", " add", "(a", ", b", "):\n", "    return", " a", " +", " 1", "  # sum", '\n"x', 'y"'])
    found = code_classes(own, "python")
    assert found[:2] == ["keyword", "name"]
    assert [found[i] for i in (5, 7, 8, 9)] == ["keyword", "operator", "number", "comment"]
    assert found[11] == "string"
    with pytest.raises(ValueError, match="language='klingon' is unknown"):
        Statistics(language="klingon")
    assert lexer_of("javascript")


def test_parts_of_speech_follow_the_tagger() -> None:
    def tagger(text: str) -> list[tuple[int, int, str]]:
        assert text == " a good film"
        return [(1, 2, "DET"), (3, 7, "ADJ"), (8, 12, "NOUN")]

    assert speech_classes(side([" a", " go", "od", " film"]), tagger) == ["DET", "ADJ", "ADJ", "NOUN"]
    found, said = find_tagger()
    assert (found is None) == ("install" in said)


def test_top_types_hold_no_zeros() -> None:
    assert top_types(side(["a", "b"], [0, 0]), np.zeros(2, np.float32)) == set()
    assert top_types(side(["a", "b"], [0, 0.1]), np.float32([0, 0.1])) == {ord("b")}


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_correlations(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, dtype=float).T
    moments = Moments()
    moments.add(x[:1], y[:1])
    moments.add(x[1:], y[1:])
    if x.std() == 0 or y.std() == 0:
        assert moments.correlation() is None
        assert spearman(x, y) is None
        return
    assert moments.correlation() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert spearman(x, y) == pytest.approx(spearman(np.exp(x), y**3))
