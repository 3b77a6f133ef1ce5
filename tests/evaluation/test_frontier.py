"""Reward at matched KL: interpolation, fronts, areas, the bootstrap and its tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation.frontier import (
    Curve,
    area_budgets,
    best_within,
    bootstrap_mean,
    compare,
    holm,
    mean_height,
    pareto_front,
    reward_within,
)
from sparsepo.evaluation.tilting import TiltedReference

NUMBERS = st.floats(-5, 5, allow_nan=False)
POINTS = st.lists(st.tuples(st.floats(0, 9), NUMBERS), min_size=1, max_size=12)


def test_reward_within_a_budget() -> None:
    kl, reward = [0.0, 0.04, 0.16], [0.5, 0.6, 0.7]
    assert reward_within(kl, reward, 0.04) == pytest.approx(0.6)
    assert reward_within(kl, reward, 0.09) == pytest.approx(0.65)  # half-way in √KL
    assert reward_within(kl, reward, 1.0) == 0.7  # never reached: the best that there is
    assert reward_within(kl, reward, 0.0) == 0.5
    assert reward_within([0, 0.04, 0.16], [0.5, 0.8, 0.6], 0.16) == 0.8  # less KL keeps to the budget too
    assert reward_within([0, 0.16, 0.04], [0.5, 0.7, 0.8], 0.09) == pytest.approx(0.8)  # a run may come back
    assert reward_within([0.5], [1.0], 0.1) == -np.inf


@given(POINTS, st.lists(st.floats(0, 9), min_size=1, max_size=6))
def test_many_budgets_at_once_and_more_budget_is_never_worse(points: list, budgets: list[float]) -> None:
    kl, reward = np.array([(0.0, 0.0), *points]).T
    together = reward_within(kl, reward, sorted(budgets))
    assert together.tolist() == [float(reward_within(kl, reward, budget)) for budget in sorted(budgets)]
    assert (np.diff(together) >= -1e-12).all()
    assert together.max() <= reward.max()


@given(POINTS)
def test_no_point_beats_one_on_the_front(points: list[tuple[float, float]]) -> None:
    kl, reward = np.array(points).T
    front = pareto_front(kl, reward)
    assert (np.diff(kl[front]) > 0).all() if len(front) > 1 else front
    assert (np.diff(reward[front]) > 0).all()
    for place in range(len(points)):
        beaten = (kl[front] <= kl[place]) & (reward[front] >= reward[place])
        assert beaten.any()  # by itself, where it is on the front
        others = (kl <= kl[place]) & (reward >= reward[place]) & ((kl < kl[place]) | (reward > reward[place]))
        assert (place not in front) or not others.any()


def test_area_is_the_mean_height() -> None:
    grid = area_budgets(4.0)
    assert mean_height(grid) == pytest.approx(2.0)
    assert mean_height(np.full(len(grid), 0.7)) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="limit above 0"):
        area_budgets(0.0)


def test_the_best_run_counts_and_the_start_is_resampled_with_the_prompts() -> None:
    start = np.array([0.0, 1.0])
    low = Curve(np.array([[0.2, 0.2]]), np.array([[0.1, 0.1]]), start)
    high = Curve(np.array([[0.9, 0.9]]), np.array([[4.0, 4.0]]), start)
    share = np.sqrt(0.1 / 4)  # of the way of the better run, in √KL
    assert best_within([low, high], [0.0, 0.1, 4.0]) == pytest.approx([0.5, 0.5 + 0.4 * share, 0.9])
    assert low.started_at() == 0.5
    assert low.started_at(np.array([0, 0])) == 0.0
    assert low.points(np.array([1, 1]))[1].tolist() == [1.0, 0.2]
    with pytest.raises(ValueError, match="start has shape"):
        Curve(low.rewards, low.kls, np.zeros(3))
    with pytest.raises(ValueError, match="not empty"):
        Curve(np.zeros((0, 2)), np.zeros((0, 2)), 0.0)


def curves(rng: np.random.Generator, level: float, noise: float, seeds: range) -> dict[int, list[Curve]]:
    """Runs that reach ``level`` at KL .25 and nothing more."""
    kls = np.stack([np.full(200, 0.09), np.full(200, 0.25)])
    made = {}
    for seed in seeds:
        means = np.array([[(level + 0.5) / 2], [level]])
        made[seed] = [Curve(means + rng.normal(0, 0.1, (2, 200)) + rng.normal(0, noise), kls, 0.5)]
    return made


def test_comparison_finds_differences_and_their_uncertainty() -> None:
    rng = np.random.default_rng(0)
    seeds = range(5)
    optima = {seed: TiltedReference(rng.random((50, 64))) for seed in seeds}
    methods = {"DPO": curves(rng, 0.6, 0.002, seeds), "better": curves(rng, 0.65, 0.002, seeds)}
    found = compare(methods, [0.25], "DPO", optima=optima, limit=0.25, draws=200)
    own = found.within[0.25]
    assert found.seeds == (0, 1, 2, 3, 4)
    assert own["DPO"].difference == (0.0, 0.0, 0.0)
    assert own["DPO"].p_value is None
    estimate, low, high = own["better"].difference
    assert low < 0.05 < high
    assert low > 0
    assert estimate == pytest.approx(0.05, abs=0.02)
    assert own["better"].p_value == own["better"].p_adjusted == pytest.approx(2 / 201)
    gain = np.mean([optima[s].at_kl(0.25).reward - optima[s].reference_reward for s in seeds])
    assert own["better"].share is not None
    assert own["better"].share[0] == pytest.approx(0.15 / gain, abs=0.1)
    # half-way in √KL to (.09, .575), then on to (.25, .65): the mean height of that
    grid = area_budgets(0.25)
    expected = mean_height(reward_within([0, 0.09, 0.25], [0.5, 0.575, 0.65], grid))
    assert found.area is not None
    assert found.area["better"].reward[0] == pytest.approx(expected, abs=0.01)
    noisy = {"DPO": curves(rng, 0.6, 0.1, seeds), "better": curves(rng, 0.65, 0.1, seeds)}
    unsure = compare(noisy, [0.25], "DPO", draws=200).within[0.25]["better"]
    assert unsure.difference[2] - unsure.difference[1] > 3 * (high - low)  # seeds that differ are seen
    assert unsure.p_value is not None
    assert unsure.p_value > 0.05
    assert unsure.share is None


def test_comparison_of_what_cannot_be_compared() -> None:
    rng = np.random.default_rng(0)
    methods = {"DPO": curves(rng, 0.6, 0.002, range(2))}
    with pytest.raises(ValueError, match="x has no run of seed 1"):
        compare({**methods, "x": {0: methods["DPO"][0]}}, [0.25], "DPO", draws=2)
    with pytest.raises(ValueError, match="baseline='SFT'"):
        compare(methods, [0.25], "SFT", draws=2)
    few = Curve(np.zeros((1, 3)), np.zeros((1, 3)), 0.0)
    with pytest.raises(ValueError, match="different numbers of prompts"):
        compare({**methods, "x": {0: [few], 1: [few]}}, [0.25], "DPO", draws=2)


def test_no_difference_is_found_as_often_as_chance_says() -> None:
    """Of 100 comparisons of equal methods about 5 have p < 0.05."""
    rng = np.random.default_rng(1)
    below = 0
    for _ in range(100):
        kls = np.full((1, 40), 0.25)
        runs = {name: {0: [Curve(rng.normal(0.6, 0.2, (1, 40)), kls, 0.0)]} for name in ("a", "b")}
        p_value = compare(runs, [0.25], "a", draws=99).within[0.25]["b"].p_value
        assert p_value is not None
        below += p_value < 0.05
    assert 1 <= below <= 12


def test_holm_adjusts_upwards_and_in_order() -> None:
    assert holm({0: 0.01, 1: 0.04, 2: 0.03}) == pytest.approx({0: 0.03, 2: 0.06, 1: 0.06})
    assert holm({0: 0.9, 1: 0.8}) == {0: 1.0, 1: 1.0}


def test_intervals_cover_the_mean_of_prompts_and_of_seeds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 1.0, 400)
    estimate, low, high = bootstrap_mean([values])
    assert estimate == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    apart = bootstrap_mean([values, values + 2])
    assert apart[0] == pytest.approx(values.mean() + 1)
    assert apart[2] - apart[1] > 1.5  # two seeds that differ by 2
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match=r"\[3, 4\].*shared_prompts=False"):
        bootstrap_mean([np.zeros(3), np.zeros(4)])
    assert bootstrap_mean([np.zeros(3), np.zeros(4)], shared_prompts=False) == (0.0, 0.0, 0.0)


def half_width(interval: tuple[float, float, float]) -> float:
    return (interval[2] - interval[1]) / 2


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_what_prompts_do_to_all_seeds_is_not_averaged_away(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    prompts = rng.normal(0.5, 0.3, 200)
    groups = [prompts + rng.normal(0, 0.01, 200) for _ in range(seeds)]
    kls = np.full((1, 200), 0.25)
    runs = {"DPO": {seed: [Curve(own[None], kls, 0.0)] for seed, own in enumerate(groups)}}
    alone = 1.96 * prompts.std() / np.sqrt(200)
    for shared, expected in ((True, alone), (False, alone / np.sqrt(seeds))):
        mean = bootstrap_mean(groups, shared_prompts=shared)
        compared = compare(runs, [0.25], "DPO", draws=500, shared_prompts=shared).within[0.25]["DPO"].reward
        assert half_width(mean) == pytest.approx(expected, rel=0.12)
        assert half_width(compared) == pytest.approx(expected, rel=0.15)


def test_seeds_of_different_numbers_of_prompts_do_not_share_them() -> None:
    runs = {
        "DPO": {0: [Curve(np.ones((1, 3)), np.ones((1, 3)), 0.0)], 1: [Curve(np.ones((1, 4)), np.ones((1, 4)), 0.0)]}
    }
    with pytest.raises(ValueError, match=r"\[3, 4\].*shared_prompts=False"):
        compare(runs, [1.0], "DPO", draws=2)
    assert compare(runs, [1.0], "DPO", draws=2, shared_prompts=False).within[1.0]["DPO"].reward == (1.0, 1.0, 1.0)


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    """Twelve seeds on the same 60 prompts: seeds, prompts and single responses all vary; the true mean is 0."""
    rng = np.random.default_rng(0)
    covered = {True: 0, False: 0}
    for _ in range(300):
        values = rng.normal(0, 0.05, (12, 1)) + rng.normal(0, 0.5, (1, 60)) + rng.normal(0, 0.3, (12, 60))
        for shared in covered:
            _, low, high = bootstrap_mean(values, draws=200, shared_prompts=shared)
            covered[shared] += low <= 0 <= high
    assert 0.91 <= covered[True] / 300 <= 0.98
    assert covered[False] / 300 < 0.75  # prompts drawn anew for each seed
