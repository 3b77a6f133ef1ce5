"""The page of win rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsepo.data.content import ContentFilter
from sparsepo.evaluation.judge import Comparison, Verdict, summarise
from sparsepo.evaluation.judge.verdicts import NO_VERDICT, Judgement, score_of
from sparsepo.inspection.judge_page import left_out_rows, result_rows, write_page
from tests.inspection.conftest import does_not_overflow, watched

EVIL = "<script>document.title = 'run'</script> " + "long" * 200


def verdict(place: int, first: Any, second: Any) -> Verdict:
    judgements = (
        Judgement(first),
        Judgement(None, NO_VERDICT) if second is None else Judgement(second),
    )
    comparison = Comparison(f"prompt {place} {EVIL}", f"{'more ' * (place % 4)}answer", "a murder")
    return Verdict(comparison, score_of(judgements), judgements, ("Preferred: A", None))


def report_of(verdicts: list[Verdict], judge: dict[str, Any], **more: Any) -> dict[str, Any]:
    run = {"names": ["ours", "theirs"], "complete": True, "stopped": "", "judge": judge}
    return {**run, **summarise(verdicts, 0, 200), **more}


REWARD = {"kind": "reward model", "model": "tiny", "tie_margin": 0.0, "notes": ["3 of 4 texts were cut"]}
MODEL = {
    "kind": "language model",
    "model": "judge-1",
    "endpoint": "http://localhost/v1",
    "settings": {"temperature": 0},
    "template": {"name": "mine", "about": "which", "source": "own", "system": "", "user": "{{ prompt }}"},
    "prices": {"in": 1.0, "out": 2.0},
}
ASKED = {
    "asking": {"requests": 4, "cached": 1, "answered": 3, "failed": 0, "retried": {"HTTP 500": 2}},
    "spent": {"requests": 5, "by_end": {"answered": 3, "failed": 2}, "tokens_in": 10, "tokens_out": 20, "cost": 0.5},
}
OUTCOMES = [("first", "second"), ("second", "first"), ("first", "first"), ("first", None), ("tie", "tie")]
BOTH = [verdict(place, *OUTCOMES[place % len(OUTCOMES)]) for place in range(20)]


def test_the_page_in_a_browser(tmp_path: Path, browser: Any) -> None:
    path = write_page(report_of(BOTH, MODEL, **ASKED), BOTH, tmp_path, examples=2, words=ContentFilter())
    for width in (1200, 420):
        with watched(browser, path, width=width) as page:
            page.evaluate("document.querySelectorAll('details').forEach((own) => { own.open = true })")
            assert does_not_overflow(page)
            assert page.title() == "ours against theirs"
            text = page.inner_text("main")
            for shown in ("win rate of ours", "[ours first: first]", f"[theirs first: {NO_VERDICT}]", "HTTP 500"):
                assert shown in text
            assert "a m....." in text
            assert "murder" not in text
            assert page.locator("img").count() == 2
    assert {own.suffix for own in (tmp_path / "plots").iterdir()} == {".png", ".svg"}


def test_pages_of_rewards_and_of_nothing(tmp_path: Path) -> None:
    rewards = [Verdict(own.comparison, float(place % 2), margin=place % 2 - 0.5) for place, own in enumerate(BOTH)]
    text = write_page(report_of(rewards, REWARD), rewards, tmp_path, words=None).read_text(encoding="utf-8")
    assert "difference of the rewards" in text
    assert "3 of 4 texts were cut" in text
    assert "The two orders" not in text
    unread = [verdict(0, "first", None)]
    report = report_of(unread, MODEL, **{**ASKED, "complete": False, "stopped": "a cap"})
    text = write_page(report, unread, tmp_path, examples=0).read_text(encoding="utf-8")
    assert "Not complete: a cap" in text
    assert "Examples" not in text
    assert result_rows(report) == [["comparisons judged", "0 of 1, 1 prompts"]]
    assert left_out_rows(report)[-1] == ["excluded for that (either order)", "1 comparisons"]


@pytest.mark.parametrize("outcomes", [("first", "second"), ("tie", "tie")])
def test_where_all_scores_are_alike(tmp_path: Path, outcomes: tuple[str, str]) -> None:
    own = [verdict(place, *outcomes) for place in range(5)]
    rows = dict(result_rows(report_of(own, MODEL, **ASKED)))  # type: ignore[arg-type]
    assert rows["at equal length"].startswith("all scores are alike")
    assert write_page(report_of(own, MODEL, **ASKED), own, tmp_path).is_file()
