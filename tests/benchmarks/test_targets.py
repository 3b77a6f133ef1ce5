"""Targets are judged by the rows of one table, and named unmeasured where it lacks them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from common import CLOCKS, take_turns
from targets import Target, all_targets, judge, target_table

TIME = Target("table", "key", "ours", "theirs", 0.5)
PEAK = Target("table", "key", "ours", "theirs", 0.5, peak=True)
GAIN = Target("table", "key", "ours", "theirs", 2.0, gain=True)


def write(folder, ours, theirs, peak=(None, None)):
    rows = [
        {"variant": "ours", "seconds": ours, "peak_mib": peak[0]},
        {"variant": "theirs", "seconds": theirs, "peak_mib": peak[1]},
    ]
    (folder / "table.json").write_text(json.dumps({"setting": "", "results": [{"key": "key", "rows": rows}]}))


@pytest.mark.parametrize(("ours", "kept"), [([4.0, 5.0, 9.0], "yes"), ([4.0, 5.1, 5.2], "no")])
def test_times_are_judged_by_the_ratio_of_medians_and_shown_with_their_spread(tmp_path, ours, kept):
    write(tmp_path, ours, [10.0, 10.0, 10.0])
    measured, verdict = judge(tmp_path, TIME)
    assert verdict == kept
    assert measured == f"{ours[1] / 10:.2f} ({min(ours) / 10:.2f}–{max(ours) / 10:.2f})"
    assert judge(tmp_path, GAIN)[1] == kept


def test_peaks_are_judged_where_they_were_measured(tmp_path):
    write(tmp_path, [1.0], [1.0], (40.0, 100.0))
    assert judge(tmp_path, PEAK) == ("0.40", "yes")
    write(tmp_path, [1.0], [1.0])
    assert judge(tmp_path, PEAK) == ("not measured", "")


def test_what_no_table_holds_is_not_measured(tmp_path):
    assert judge(tmp_path, TIME) == ("not measured", "")
    assert target_table(tmp_path).count("not measured") == len(all_targets())


def test_every_target_names_a_table_and_variants_that_are_measured():
    from prefix import variants as routes
    from run_all import STEP_TARGETS, all_tables
    from scorer import VARIANTS

    known = {"scorer_float32": set(VARIANTS), "prefix_float32": set(routes(True)), "step_targets": set(STEP_TARGETS)}
    for target in all_targets():
        assert target.table in all_tables()
        assert {target.variant, target.base} <= known[target.table]


def test_the_processors_clock_does_not_count_waiting():
    import time

    seconds = {clock: take_turns({"wait": lambda: time.sleep(0.05)}, 1, clock=clock)["wait"][0] for clock in CLOCKS}
    assert seconds["wall"] >= 0.05
    assert seconds["cpu"] < 0.02


def test_the_processors_clock_is_refused_for_a_gpu():
    with pytest.raises(ValueError, match="--clock wall"):
        take_turns({}, 1, device="cuda", clock="cpu")
