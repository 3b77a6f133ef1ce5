"""Masks carried over by characters: exact where tokens are the same, right where they are not, usable for training."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo import SparsePOTrainer
from sparsepo.cli.small_models import train_tokenizer
from sparsepo.inspection import PairRecord, SideRecord, collect
from sparsepo.inspection.alignment import TextsDifferError, on_tokens, weight_spans
from sparsepo.inspection.transfer import ROWS, Transfer, top_overlap, weighted_rows, write_transfer
from tests.inspection.conftest import HOSTILE, byte_tokenizer
from tests.support import preference_rows, tiny_model
from tests.training.running import run_config


def cut(text: str, places: set[int]) -> SideRecord:
    """A text cut into tokens at some places."""
    edges = [0, *sorted(place for place in places if 0 < place < len(text)), len(text)]
    pieces = tuple(text[a:b] for a, b in pairwise(edges)) if text else ()
    ids = np.arange(len(pieces), dtype=np.int64)
    return SideRecord(ids, pieces, np.zeros(len(pieces), bool), 0.0)


TEXT = st.text(alphabet="ab \n", min_size=1, max_size=20)
PLACES = st.sets(st.integers(0, 20))


@given(TEXT, PLACES, st.data())
@settings(max_examples=100, deadline=None)
def test_the_same_tokens_get_the_same_values(text: str, places: set[int], data: st.DataObject) -> None:
    side = cut(text, places)
    values = np.float32(data.draw(st.lists(st.sampled_from([0, 0.5, 1, 2]), min_size=len(side), max_size=len(side))))
    assert np.array_equal(on_tokens(weight_spans(side, values), side, text), values)


@given(TEXT, PLACES, PLACES, st.data())
@settings(max_examples=100, deadline=None)
def test_other_tokens_get_the_largest_value_that_they_touch(
    text: str, a: set[int], b: set[int], data: st.DataObject
) -> None:
    source, target = cut(text, a), cut(text, b)
    values = np.float32(data.draw(st.lists(st.sampled_from([0, 0.5, 1]), min_size=len(source), max_size=len(source))))
    at = np.concatenate([[value] * len(piece) for value, piece in zip(values, source.pieces, strict=True)])
    expected, place = [], 0
    for piece in target.pieces:
        expected.append(at[place : place + len(piece)].max())
        place += len(piece)
    assert np.array_equal(on_tokens(weight_spans(source, values), target, text), expected)


def test_zeros_and_special_tokens_have_no_span_and_neighbours_are_joined() -> None:
    side = SideRecord(np.arange(5), (" a", "b", "c", "d", "</s>"), np.array([0, 0, 0, 0, 1], bool), 0.0)
    assert weight_spans(side, np.float32([1, 1, 0, 2, 3])) == [(0, 3, 1.0), (4, 5, 2.0)]


def test_whitespace_at_the_edge_and_texts_that_were_cut() -> None:
    side = cut(" a good", {2})
    assert weight_spans(side, np.float32([1, 2]), "a good film") == [(0, 1, 1.0), (1, 6, 2.0)]
    assert weight_spans(cut("a good", {1}), np.float32([1, 2]), "  a good") == [(2, 3, 1.0), (3, 8, 2.0)]
    with pytest.raises(TextsDifferError):
        weight_spans(cut("a bad", {1}), np.float32([1, 2]), "a good film")


def test_overlap_of_the_largest_shares_ties_out() -> None:
    assert top_overlap(np.arange(10.0), np.arange(10.0)) == 1.0
    assert top_overlap(np.arange(10.0), -np.arange(10.0)) == 0.0
    assert top_overlap(np.zeros(10), np.arange(10.0)) == pytest.approx(0.2)  # chance
    assert top_overlap(np.zeros(1), np.zeros(1)) is None


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict], list[PairRecord], list[PairRecord], SparsePOTrainer]:
    """Rows, and records of two models of different tokenizers."""
    folder = tmp_path_factory.mktemp("transfer")
    rows = [HOSTILE, *preference_rows(7)]
    found, trainer = [], None
    for place, tokenizer in enumerate((byte_tokenizer(), train_tokenizer([row["chosen"] for row in rows] * 9, 320))):
        sizes = {"vocab_size": len(tokenizer), "n_positions": 512, "max_position_embeddings": 512}
        data = Dataset.from_list(rows)
        trainer = SparsePOTrainer(
            model=tiny_model("gpt2", **sizes),
            ref_model=tiny_model("gpt2", **sizes),
            args=run_config(folder / str(place), max_steps=6, learning_rate=1e-2, mask_target_sparsity=0.3),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
        )
        trainer.train()
        found.append(list(collect(trainer.get_eval_dataloader(), trainer.score, trainer.objective, tokenizer)))
    assert trainer is not None
    return rows, found[0], found[1], trainer


def test_a_mask_agrees_with_itself(two: tuple) -> None:
    transfer = Transfer(two[1])
    transfer.compare(two[1])
    rows = transfer.summary()["rows"]
    assert rows["A's mask"]["rank"]["value"] == pytest.approx(1.0)
    assert rows["A's mask"]["top"]["value"] > 0.9  # not 1: ties at the border are shared out
    for name in ("shuffled", "random"):
        assert abs(rows[name]["rank"]["value"]) < 0.3
    assert set(rows) == set(ROWS)


def test_two_tokenizers_are_compared_and_written(two: tuple, tmp_path: Path) -> None:
    transfer = Transfer(two[1])
    transfer.compare(two[2])
    summary = transfer.summary()
    assert summary["pairs"] == 8
    assert summary["responses"] + summary["skipped"].get("texts differ", 0) == 16
    write_transfer(summary, tmp_path, "A", "B")
    assert json.loads((tmp_path / "transfer.json").read_text())["rows"] == summary["rows"]
    assert (tmp_path / "transfer.html").is_file()


def test_weights_by_character_train_another_model(two: tuple, tmp_path: Path) -> None:
    rows, a, _, trainer = two
    kept = [row for row in weighted_rows(rows, a) if row is not None]
    assert len(kept) >= 7
    data = Dataset.from_list(kept)
    used = SparsePOTrainer(
        model=tiny_model(
            "gpt2", vocab_size=len(trainer.processing_class), n_positions=512, max_position_embeddings=512
        ),
        args=run_config(tmp_path, max_steps=2, objective="sparsepo", mask="data"),
        train_dataset=data,
        eval_dataset=data,
        processing_class=trainer.processing_class,
    )
    used.train()
    records = list(collect(used.get_eval_dataloader(), used.score, used.objective, used.processing_class))
    assert max(record.chosen.reward_mask.max() for record in records) > 0
    for row, record in zip(kept, records, strict=True):
        side = record.chosen
        own = on_tokens([tuple(span) for span in row["chosen_weights"]], side, row["chosen"])
        assert np.allclose(side.reward_mask, own, atol=1e-6)


def test_rows_of_another_text_are_left_out(two: tuple) -> None:
    rows, a = two[0], two[1]
    changed = [{**rows[0], "chosen": "something else"}, *rows[1:], rows[0]]
    found = list(weighted_rows(changed, a))
    assert found[0] is None  # another text
    assert found[-1] is None  # no record
    assert all(row is not None for row in found[1:-1])


def test_models_without_masks_or_pairs_are_refused(two: tuple) -> None:
    with pytest.raises(ValueError, match="no pair"):
        Transfer([])
    bare = [PairRecord(0, "", "", np.zeros(1, np.int64), cut("ab", {1}), cut("ab", {1}), 0.0, 0.1)]
    with pytest.raises(ValueError, match="no reward_mask"):
        Transfer(bare)
    with pytest.raises(ValueError, match="share no pair"):
        Transfer(two[1]).compare([])
