"""Resampling: what is drawn does not depend on blocks, and every room's means and intervals are the same."""

from __future__ import annotations

import numpy as np
import pytest

from sparsepo.evaluation import bootstrap, frontier
from sparsepo.evaluation.judge.statistics import Clusters, mean_with_interval
from sparsepo.evaluation.summaries import bootstrap_mean

VALUES = np.random.default_rng(5).exponential(size=37)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    both = np.stack([VALUES, VALUES**2])
    whole = bootstrap.resampled_means(both, 23, np.random.default_rng(1))
    monkeypatch.setattr(bootstrap, "_BLOCK", 5 * both.size)
    assert [len(own) for own in bootstrap.drawn_places(37, 23, np.random.default_rng(1), both.size)] == [5, 5, 5, 5, 3]
    assert np.array_equal(bootstrap.resampled_means(both, 23, np.random.default_rng(1)), whole)
    places = np.random.default_rng(1).integers(37, size=(23, 37))
    assert np.allclose(whole, [VALUES[places].mean(1), (VALUES**2)[places].mean(1)])  # both rows share the draws
    assert bootstrap.resampled_means(both, 0, np.random.default_rng(1)).shape == (2, 0)


def test_every_room_reads_off_the_same_interval() -> None:
    summaries = bootstrap_mean(VALUES.tolist(), seed=3, draws=400)
    judge = mean_with_interval(VALUES, Clusters([str(n) for n in range(37)]), resamples=400, seed=3)
    runs = frontier.bootstrap_mean([VALUES], draws=400, seed=3)
    for own in ([judge[name] for name in ("value", "low", "high")], runs):
        assert own == pytest.approx([summaries[name] for name in ("value", "low", "high")])


def test_resamples_without_a_value_are_left_out_where_asked() -> None:
    draws = np.array([np.nan, 1.0, 2.0, 3.0])
    assert bootstrap.percentile_interval(draws, ignore_nan=True) == pytest.approx((1.05, 2.95))
    assert np.isnan(bootstrap.percentile_interval(draws)[0])
