"""Noise does what it says, what is measured is right, and what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo.data.rules import text_of
from sparsepo.inspection import PairRecord, SideRecord
from sparsepo.inspection.perturb import CHANGES, SYNONYMS, insert_words, perturb
from sparsepo.inspection.robustness import Results, accuracy, adversarial, lexicon_of, noise, with_text
from sparsepo.inspection.robustness_page import table, write_page

ROWS = [
    {"prompt": "p", "chosen": f" good fine film number {n}", "rejected": f" bad dull film number {n}"}
    for n in range(30)
]
VALUES = {"good": 1.0, "fine": 0.5, "bad": -1.0, "dull": -0.5}


def side_of(text: str) -> SideRecord:
    """A model that knows what words are worth, a token a word, and whose mask is how much."""
    words = text.split(" ")
    pieces = tuple(word if place == 0 else f" {word}" for place, word in enumerate(words))
    worth = np.float32([VALUES.get(word, 0.0) for word in words])
    ids = np.array([sum(map(ord, word)) for word in words], dtype=np.int64)
    mask = np.abs(worth) + 0.01
    return SideRecord(
        ids, pieces, np.zeros(len(words), bool), float(worth.sum()), mask, mask, worth, contribution=worth
    )


class Scorer:
    """Counts what is scored."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, rows: Any, text: str) -> list[PairRecord]:
        self.asked.append(text)
        found = []
        for number, row in enumerate(rows):
            chosen, rejected = (side_of(text_of(row[side])) for side in ("chosen", "rejected"))
            found.append(PairRecord(number, "", "p", np.zeros(1, np.int64), chosen, rejected, 0.1, 1.0))
        return found


@given(st.text(max_size=60), st.sampled_from(sorted(CHANGES)), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_what_became_of_each_word_is_known(text: str, name: str, rate: float, seed: int) -> None:
    noisy = perturb(text, CHANGES[name], rate, np.random.default_rng(seed))
    for (a, b), (c, d) in noisy.words:
        old, new = text[a:b], noisy.text[c:d]
        assert old
        if name == "case":
            assert new in (old, old.upper(), old.lower())
        if name in ("dropped words", "dropped function words"):
            assert new == old
        if name == "neutral synonyms":
            assert new == old or new.lower() == SYNONYMS[old.lower()]
    if rate == 0:
        assert noisy.text == text
        assert noisy.changed == 0


def test_a_rate_of_one_changes_every_word_that_can_be() -> None:
    rng = np.random.default_rng(0)
    assert perturb("The film was also big.", CHANGES["neutral synonyms"], 1, rng).text == "The movie was too large."
    assert perturb("a good film", CHANGES["dropped words"], 1, rng).text.strip() == ""
    assert perturb("the good film", CHANGES["dropped function words"], 1, rng).text == " good film"
    assert perturb("good FILM", CHANGES["case"], 1, rng).text == "GOOD film"
    typos = perturb("wonderful " * 20, CHANGES["typos"], 1, rng)
    assert typos.changed >= 18
    with pytest.raises(ValueError, match="rate=2"):
        perturb("a", CHANGES["typos"], 2, rng)


def test_words_are_inserted_between_words() -> None:
    found = insert_words(" bad film", ["good"] * 3, np.random.default_rng(0))
    assert found.split().count("good") == 3
    assert [word for word in found.split() if word != "good"] == ["bad", "film"]


def test_messages_keep_their_form() -> None:
    row = {"prompt": [], "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}
    assert with_text(row, "chosen", "x")["chosen"] == [{"role": "assistant", "content": "x"}]
    assert row["chosen"][0]["content"] == "a"


def test_noise_is_measured_and_resumed(tmp_path: Path) -> None:
    scorer = Scorer()
    arguments: dict[str, Any] = {"changes": ("case", "dropped function words"), "rates": (0.0, 1.0)}
    found = noise(ROWS, scorer, Results(tmp_path, {"model": "m"}), **arguments)
    assert found["none"]["accuracy"]["value"] == 1.0
    assert found["case-0"]["mask"]["value"] == pytest.approx(1.0)
    assert found["case-0"]["flipped"]["value"] == 0.0
    assert found["case-1"]["accuracy"]["value"] == 0.0  # this model knows lower case only: all margins are 0
    assert found["case-1"]["words_changed"] == pytest.approx(0.8)  # numbers have no case
    dropped = noise(ROWS, scorer, Results(None, {}), changes=("dropped words",), rates=(0.5,))["dropped_words-0.5"]
    assert dropped["words_changed"] == pytest.approx(0.5, abs=0.1)
    del scorer.asked[-2:]
    assert found["dropped_function_words-1"]["accuracy"]["value"] == 1.0
    assert scorer.asked == ["clean text", "case 0", "case 1", "dropped function words 0", "dropped function words 1"]
    again = Scorer()
    assert noise(ROWS, again, Results(tmp_path, {"model": "m"}), **arguments) == found
    assert again.asked == []
    (tmp_path / "conditions" / "case-1.json").unlink()
    assert noise(ROWS, again, Results(tmp_path, {"model": "m"}), **arguments) == found  # the same noise
    assert again.asked == ["clean text", "case 1"]
    with pytest.raises(ValueError, match="results of other model"):
        Results(tmp_path, {"model": "another"})
    _, rows = table(found)
    assert len(rows) == 5
    assert write_page("noise", found, {}, tmp_path, "m").is_file()


def test_an_attack_flips_what_follows_words_and_its_control_does_not(tmp_path: Path) -> None:
    scorer = Scorer()

    def lexicon() -> Any:
        return lexicon_of(scorer(ROWS[:15], "lexicon"), size=2)

    found = adversarial(ROWS[15:], scorer, Results(tmp_path, {}), lexicon, counts=(8,))
    words = json.loads((tmp_path / "conditions" / "lexicon.json").read_text())
    assert set(words["largest masks"]) == {"good", "bad"}
    assert set(words["largest contributions"]) == {"good", "fine"}
    assert found["largest_contributions-8"]["flips"]["value"] == 1.0
    assert found["largest_contributions-8"]["rejected_reward_change"]["value"] > 2
    assert write_page("adversarial", found, words, tmp_path, "m").is_file()
    with pytest.raises(ValueError, match=r"Only \d+ words occur"):
        lexicon_of(scorer(ROWS[:2], "few"))


def test_a_tie_is_wrong() -> None:
    records = Scorer()([{"chosen": "a", "rejected": "b"}] * 2, "ties")
    assert accuracy(records)["accuracy"]["value"] == 0.0
