"""The page in headless Chromium, and that nothing in a row can act in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsepo.inspection import QUANTITIES, PairRecord, RecordWriter, read_records, write_page
from sparsepo.inspection.frames import write_frames
from tests.inspection.conftest import watched


@pytest.fixture(scope="module")
def written(records: list[PairRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    assert write_page(records, folder / "inspect.html", title="<b>T</b>") == len(records)
    with RecordWriter(folder / "tokens.parquet") as writer:
        for record in records:
            writer.add(record)
    return folder


@pytest.fixture
def opened(browser: Any, written: Path) -> Any:
    with watched(browser, written / "inspect.html", "#responses .token") as page:
        yield page


def test_nothing_in_a_row_ends_a_script_or_an_element(written: Path) -> None:
    text = (written / "inspect.html").read_text(encoding="utf-8")
    assert len(re.findall("</script", text)) == 2  # the data's and the page's own
    assert "<img" not in text
    assert "<b>T" not in text
    assert "\u202e" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)


def test_a_hostile_row_does_nothing(opened: Any) -> None:
    assert opened.evaluate("window.broken === undefined")
    assert opened.evaluate("document.querySelectorAll('img').length") == 0
    prompt = opened.text_content("#prompt-text")
    assert "<script>" in prompt
    assert "\u202e" not in prompt
    assert "U+202E" in prompt


def test_every_layer_colours_by_its_values(opened: Any, written: Path) -> None:
    stored = next(iter(read_records(written / "tokens.parquet")))
    names = opened.eval_on_selector_all("#layer option", "options => options.map(o => o.value)")
    assert names == list(QUANTITIES)
    for name in names:
        opened.select_option("#layer", name)
        assert QUANTITIES[name] in opened.text_content("#legend")
        zeros = opened.eval_on_selector_all(
            "#responses .tokens[data-side=chosen] .token", "tokens => tokens.map(t => t.classList.contains('zero'))"
        )
        assert zeros == [bool(value == 0) for value in stored.chosen.values(name)]


def test_hovered_values_are_the_tables(opened: Any, written: Path) -> None:
    stored = next(iter(read_records(written / "tokens.parquet")))
    for side, record in stored.sides().items():
        tokens = opened.query_selector_all(f"#responses .tokens[data-side={side}] .token")
        assert len(tokens) == len(record)
        for number in (0, len(record) // 2, len(record) - 1):
            tokens[number].hover()
            shown = opened.eval_on_selector_all("#details dd", "all => all.map(d => d.textContent)")
            assert shown[0] == f"{record.token_ids[number]} (no. {number + 1}, {side})"
            expected = [np.float32(record.values(name)[number]) for name in QUANTITIES]
            assert [np.float32(text) for text in shown[1:]] == expected


def test_search_filter_and_sort(opened: Any, records: list[PairRecord]) -> None:
    def pairs() -> list[int]:
        return opened.eval_on_selector_all("#list li", "lines => lines.map(l => Number(l.dataset.pair))")

    opened.select_option("#sort", "margin")
    assert pairs() == sorted(range(len(records)), key=lambda i: records[i].margin)
    opened.select_option("#sort", "loss")
    assert pairs() == sorted(range(len(records)), key=lambda i: -records[i].loss)
    opened.select_option("#sort", "number")
    opened.select_option("#filter", "wrong")
    assert pairs() == [i for i, record in enumerate(records) if record.margin <= 0]
    opened.select_option("#filter", "")
    opened.fill("#search", "${window")
    assert pairs() == [0]
    assert opened.text_content("#count") == f"1 of {len(records)} pairs"


def test_keys_move_between_pairs_and_tokens(opened: Any) -> None:
    opened.keyboard.press("j")
    assert "#1" in opened.text_content("#facts")
    opened.keyboard.press("k")
    assert "#0" in opened.text_content("#facts")
    opened.keyboard.press("l")
    assert opened.eval_on_selector("#layer", "s => s.value") == "kl_mask"
    opened.focus("#responses .token")
    opened.keyboard.press("ArrowRight")
    assert opened.get_attribute("#details", "data-token") == "chosen/1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_need_no_sideways_scrolling(browser: Any, written: Path, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto((written / "inspect.html").as_uri())
    page.wait_for_selector("#responses .token")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3
    assert (brightness < 80) == (scheme == "dark")
    context.close()


def test_a_long_page_holds_what_it_is_given(browser: Any, records: list[PairRecord], tmp_path: Path) -> None:
    """500 pairs × 400 tokens: the first pair is there."""
    side = records[1].chosen
    times = 200 // len(side) + 1

    def longer(value: Any) -> Any:
        return value if not isinstance(value, np.ndarray) else np.tile(value, times)

    big = replace(
        side,
        **{name: longer(getattr(side, name)) for name in ("token_ids", "special", "reward_mask", "kl_mask")},
        **{name: longer(getattr(side, name)) for name in ("log_ratio", "kl", "contribution")},
        pieces=side.pieces * times,
    )
    many = (replace(records[1], number=i, chosen=big, rejected=big) for i in range(500))
    assert write_page(many, tmp_path / "big.html") == 500
    page = browser.new_page()
    page.goto((tmp_path / "big.html").as_uri())
    page.wait_for_selector("#responses .token")
    assert page.evaluate("document.querySelectorAll('#responses .token').length") == 2 * len(big)
    assert page.evaluate("document.querySelectorAll('#list li').length") == 500
    print("opened in ms:", page.evaluate("performance.now()"))
    page.close()


def test_a_limit_stops_reading(records: list[PairRecord], tmp_path: Path) -> None:
    def endless() -> Any:
        while True:
            yield records[0]

    assert write_page(endless(), tmp_path / "some.html", limit=3) == 3


def test_offensive_texts_are_announced(records: list[PairRecord], tmp_path: Path) -> None:
    rude = [replace(record, prompt="what the fuck is that film") for record in records]
    for name, content in (("plain", records), ("rude", rude)):
        write_page(content, tmp_path / f"{name}.html", subtitle="DPO")
        write_frames(tmp_path / f"{name}-frames.html", {"a": content, "b": content}, title="T", subtitle="DPO")
        for file in (f"{name}.html", f"{name}-frames.html"):
            text = (tmp_path / file).read_text(encoding="utf-8")
            assert ("DPO · may hold offensive language" in text) == (name == "rude")
            assert ("Content notice" in text) == (name == "rude")
