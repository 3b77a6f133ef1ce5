"""Win rates, intervals, tests: against arithmetic written out, scipy, scikit-learn and simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation.judge import Comparison, Verdict, summarise
from sparsepo.evaluation.judge.statistics import (
    Clusters,
    binomial_p,
    fit_logistic,
    length_controlled,
    mean_with_interval,
    sign_test,
)
from sparsepo.evaluation.judge.verdicts import EMPTY, UNANSWERED, Judgement


def clusters_of(count: int) -> Clusters:
    return Clusters([str(i) for i in range(count)])


def test_the_binomial_test_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for trials in (0, 1, 5, 40, 301):
        for successes in {0, trials // 3, trials // 2, trials}:
            expected = stats.binomtest(successes, trials).pvalue if trials else 1.0
            assert binomial_p(successes, trials) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_counts_prompts() -> None:
    scores = np.array([1.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.25])
    found = sign_test(scores, Clusters(["a", "a", "a", "b", "c", "c", "d"]))
    assert found == {"wins": 1, "losses": 1, "ties": 2, "p": 1.0}


def test_the_interval_covers_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        scores = generator.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6], size=60)
        found = mean_with_interval(scores, clusters_of(60), resamples=400, seed=trial)
        covered += found["low"] <= 0.7 <= found["high"]
    assert 0.90 <= covered / 300 <= 0.98


def test_rows_of_a_prompt_are_not_independent() -> None:
    scores = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], 20)
    apart = mean_with_interval(scores, clusters_of(120), resamples=2000)
    together = mean_with_interval(scores, Clusters([str(i // 20) for i in range(120)]), resamples=2000)
    assert together["value"] == apart["value"] == pytest.approx(2 / 3)
    assert (together["rows"], together["prompts"]) == (120, 6)
    assert together["high"] - together["low"] > 3 * (apart["high"] - apart["low"])


def test_where_nothing_varies_the_interval_is_wilsons() -> None:
    found = mean_with_interval(np.ones(20), clusters_of(20))
    assert found["interval"] == "wilson"
    assert found["high"] == 1.0
    assert found["low"] == pytest.approx(20 / (20 + 1.96**2), rel=1e-6)
    for difference in (7.0, 0.0, -0.5):  # of rewards: no share, even where it lies in [0, 1]
        found = mean_with_interval(np.full(3, difference), clusters_of(3), shares=False)
        assert (found["value"], found["low"], found["interval"]) == (difference, None, None)


def test_the_bootstrap_is_seeded() -> None:
    scores = np.array([1.0, 0.0, 1.0, 0.5, 1.0])
    same = [mean_with_interval(scores, clusters_of(5), resamples=50, seed=3) for _ in range(2)]
    assert same[0] == same[1]


# ---- length control ----


def test_the_fit_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(1)
    x = generator.uniform(-1, 1, 80)
    y = (generator.uniform(size=80) < 1 / (1 + np.exp(-(0.4 + 1.5 * x)))).astype(float)
    (theta, phi) = fit_logistic(x, y, np.ones((1, 80)))[0]
    # the intercept is a column too, so that scikit-learn's ridge is on it as well
    other = linear.LogisticRegression(C=100.0, fit_intercept=False, tol=1e-12, max_iter=10_000)
    other.fit(np.stack([np.ones(80), x], axis=1), y)
    assert [theta, phi] == pytest.approx(other.coef_[0].tolist(), abs=1e-5)


def test_weights_are_repeated_rows() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=30), generator.choice([0, 0.25, 0.5, 0.75, 1.0], size=30)
    weights = generator.integers(0, 4, size=30)
    repeated = fit_logistic(np.repeat(x, weights), np.repeat(y, weights), np.ones((1, int(weights.sum()))))
    assert fit_logistic(x, y, weights[None].astype(float)) == pytest.approx(repeated, abs=1e-9)


def simulated(theta: float, phi: float, count: int = 2000, longer: float = 80.0) -> tuple[Any, Any]:
    generator = np.random.default_rng(3)
    differences = generator.normal(longer, 100.0, count).round()
    x = np.tanh(differences / differences.std())
    wins = generator.uniform(size=count) < 1 / (1 + np.exp(-(theta + phi * x)))
    return wins.astype(float), differences


def test_a_win_by_length_alone_is_none_at_equal_length() -> None:
    scores, differences = simulated(theta=0.0, phi=2.0)
    assert scores.mean() > 0.65
    found = length_controlled(scores, differences, clusters_of(2000), resamples=100)
    assert found["low"] <= 0.5 <= found["high"]
    assert found["phi"] == pytest.approx(2.0, abs=0.3)


def test_a_win_at_any_length_stays_one() -> None:
    scores, differences = simulated(theta=1.0, phi=0.0)
    found = length_controlled(scores, differences, clusters_of(2000), resamples=100)
    assert found["value"] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)
    assert found["low"] < found["value"] < found["high"]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-50, 50)), min_size=2, max_size=30))
def test_the_fit_is_finite_and_mirrors(rows: list[tuple[float, int]]) -> None:
    scores, differences = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found = length_controlled(scores, differences, clusters_of(len(rows)), resamples=20)
    mirrored = length_controlled(1 - scores, -differences, clusters_of(len(rows)), resamples=20)
    if found["value"] is None:
        assert np.ptp(scores) == 0
        assert "alike" in found["reason"]
        return
    assert 0 <= found["low"] <= found["high"] <= 1
    assert np.isfinite([found["theta"], found["phi"]]).all()
    assert mirrored["value"] == pytest.approx(1 - found["value"], abs=1e-6)


def test_where_length_decides_everything() -> None:
    differences = np.array([-30.0, -20.0, -10.0, 10.0, 20.0, 30.0])
    found = length_controlled((differences > 0).astype(float), differences, clusters_of(6), resamples=50)
    assert found["value"] == pytest.approx(0.5, abs=1e-6)


# ---- the report ----


def verdict(prompt: str, first: Any, second: Any, candidate: str = "aa", baseline: str = "b", **more: Any) -> Verdict:
    judgements = tuple(
        Judgement(None, own) if own in (EMPTY, UNANSWERED) else Judgement(own) for own in (first, second)
    )
    from sparsepo.evaluation.judge.verdicts import score_of

    return Verdict(Comparison(prompt, candidate, baseline), score_of(judgements), judgements, ("", ""), **more)


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return summarise(verdicts, resamples=200)


def test_everything_is_counted() -> None:
    found = summary(
        [
            verdict("1", "first", "second"),
            verdict("2", "second", "first"),
            verdict("3", "first", "first"),
            verdict("4", "first", EMPTY),
            verdict("5", UNANSWERED, UNANSWERED),
            verdict("6", UNANSWERED, UNANSWERED, unasked=True),
            Verdict(Comparison("7", "same", "same"), 0.5),
        ]
    )
    numbers = {name: found[name] for name in ("comparisons", "prompts", "judged", "identical", "unasked", "excluded")}
    assert numbers == {"comparisons": 7, "prompts": 7, "judged": 4, "identical": 1, "unasked": 1, "excluded": 2}
    assert found["problems"] == {UNANSWERED: 2, EMPTY: 1}
    assert found["counts"] == {"wins": 1, "ties": 2, "losses": 1}
    assert found["win_rate"]["value"] == 0.5
    assert found["bounds"] == {"low": 2 / 7, "high": 5 / 7}
    order = found["order"]
    assert order["comparisons"] == 3
    assert order["consistency"]["value"] == pytest.approx(2 / 3)
    assert order["first_preferred"]["value"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert (order["both_times_first"], order["both_times_second"]) == (1, 0)
    assert order["table"] == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert order["consistent_win_rate"]["value"] == 0.5
    assert found["margin"] is None


def test_a_judge_that_likes_the_first_place_shows() -> None:
    found = summary([verdict(str(i), "first", "first") for i in range(30)])
    assert found["win_rate"]["value"] == 0.5
    assert found["order"]["consistency"]["value"] == 0.0
    assert found["order"]["first_preferred"]["value"] == 1.0
    assert found["order"]["consistent_win_rate"]["value"] is None


def test_a_judge_that_likes_length_shows() -> None:
    pairs = [("first", "second", "longer", "x"), ("second", "first", "x", "longer")] * 10
    found = summary([verdict(str(i), *own) for i, own in enumerate(pairs)])
    assert found["lengths"]["longer_preferred"]["value"] == 1.0
    assert found["lengths"]["candidate"] == found["lengths"]["baseline"] == 3.5
    assert found["length_controlled"]["value"] == pytest.approx(0.5, abs=1e-6)


def test_rewards_have_margins_and_no_orders() -> None:
    found = summary([Verdict(Comparison(str(i), "a", "b"), float(i > 3), margin=i - 3.5) for i in range(10)])
    assert found["margin"]["value"] == 1.0
    assert found["order"] is None
    assert found["identical"] == 0


def test_nothing_judged() -> None:
    found = summary([verdict("1", EMPTY, EMPTY)])
    assert found["win_rate"] is None
    assert found["excluded"] == 1


@given(st.lists(st.tuples(*[st.sampled_from(["first", "tie", "second"])] * 2), min_size=1, max_size=12))
def test_swapping_the_systems_mirrors_the_report(pairs: list[tuple[str, str]]) -> None:
    own = summary([verdict(str(i), *pair) for i, pair in enumerate(pairs)])
    other = summary([verdict(str(i), b, a, "b", "aa") for i, (a, b) in enumerate(pairs)])
    assert other["win_rate"]["value"] == pytest.approx(1 - own["win_rate"]["value"])
    assert other["sign_test"]["p"] == own["sign_test"]["p"]
    for name in ("consistency", "first_preferred"):
        assert other["order"][name]["value"] == pytest.approx(own["order"][name]["value"])
