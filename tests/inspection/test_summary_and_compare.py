"""Pages of statistics and of runs side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsepo.inspection import PairRecord, RecordWriter
from sparsepo.inspection.compare import compare, find_sources, write_comparison
from sparsepo.inspection.statistics import summarise
from sparsepo.inspection.summary_page import write_summary
from tests.inspection.conftest import does_not_overflow, watched


def store(folder: Path, records: list[PairRecord]) -> Path:
    with RecordWriter(folder / "tokens.parquet") as writer:
        for record in records:
            writer.add(record)
    return folder


def changed(records: list[PairRecord], change: Any) -> list[PairRecord]:
    """The records with other reward masks."""
    return [
        replace(r, chosen=replace(r.chosen, reward_mask=change(r.chosen.reward_mask)),
                rejected=replace(r.rejected, reward_mask=change(r.rejected.reward_mask)))
        for r in records
    ]  # fmt: skip


def test_summary_writes_a_page_numbers_and_plots(records: list[PairRecord], tmp_path: Path, browser: Any) -> None:
    summaries = write_summary(summarise(records), tmp_path, title="<script>x</script>")
    assert json.loads((tmp_path / "summary.json").read_text()) == summaries
    flat = np.concatenate([side.reward_mask for r in records for side in r.sides().values()])
    assert summaries[""]["masks"]["reward_mask"]["zeros"]["value"] == pytest.approx(float((flat == 0).mean()))
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert {"reward_mask_histogram", "reward_mask_class_mean", "reward_mask_position_zeros"} <= names
    for width in (1200, 375):
        with watched(browser, tmp_path / "summary.html", width=width) as page:
            assert page.locator("figure img").count() == len(names)
            assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
            assert does_not_overflow(page)
            page.click("#theme")


def test_a_run_agrees_with_itself_and_not_with_noise(records: list[PairRecord], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = changed(records, lambda mask: rng.permutation(mask))
    sources = find_sources(
        [f"{name}={store(tmp_path / name, own)}" for name, own in {"a": records, "b": records, "c": noise}.items()]
    )
    found = compare(sources)
    assert found.shared[("a", "b")] == len(records)
    same, other = found.agreement["a", "b"], found.agreement["a", "c"]
    assert same["rank"]["value"] == pytest.approx(1.0)
    assert same["zeros"]["value"] == 1.0
    assert same["correlation"] == pytest.approx(1.0)
    assert abs(other["rank"]["value"]) < 0.35
    assert other["zeros"]["value"] < 0.9


def test_pairs_of_other_data_are_not_compared(records: list[PairRecord], tmp_path: Path) -> None:
    moved = [replace(r, number=r.number + 1000) for r in records]
    other = [replace(r, chosen=replace(r.chosen, token_ids=r.chosen.token_ids + 1)) for r in records]
    found = compare(
        find_sources([f"{name}={store(tmp_path / name, own)}" for name, own in
                      {"a": records, "b": moved, "c": other}.items()])
    )  # fmt: skip
    assert set(found.shared.values()) == {0}
    written = write_comparison(found, tmp_path / "out")
    assert [entry["correlation"] for entry in written["agreement"]] == [None] * 3
    assert not (tmp_path / "out" / "pairs.html").exists()


def test_the_pages_open(records: list[PairRecord], tmp_path: Path, browser: Any) -> None:
    half = changed(records, lambda mask: mask / 2)
    sources = find_sources([f"{n}={store(tmp_path / n, own)}" for n, own in {"one": records, "two": half}.items()])
    write_comparison(compare(sources), tmp_path)
    for file in ("compare.html", "pairs.html"):
        for width in (1200, 375):
            with watched(browser, tmp_path / file, width=width) as page:
                assert does_not_overflow(page)
                assert page.evaluate("window.broken === undefined")
    with watched(browser, tmp_path / "pairs.html") as page:
        page.evaluate("setLayer('reward_mask')")
        values = []
        for frame in (0, 1):
            page.locator(f".tokens[data-frame='{frame}'][data-side=chosen] .token").nth(1).hover()
            values.append(np.float32(page.locator("#details dd").nth(1).text_content()))
        assert values == [records[0].chosen.reward_mask[1], half[0].chosen.reward_mask[1]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing"], "no file or folder missing"),
        (["{empty}", "{full}"], "holds no tokens.parquet"),
        (["{full}"], "at least two"),
        (["{full}", "{full}"], "one name"),
    ],
)
def test_bad_sources(records: list[PairRecord], tmp_path: Path, inputs: list[str], message: str) -> None:
    places = {"empty": tmp_path / "empty", "full": store(tmp_path / "full", records[:1])}
    places["empty"].mkdir()
    with pytest.raises(ValueError, match=message):
        find_sources([text.format(**places) for text in inputs])
