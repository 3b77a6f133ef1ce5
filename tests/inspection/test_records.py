"""Records say what the loss saw, and survive storing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sparsepo import SparsePOTrainer
from sparsepo.inspection import QUANTITIES, PairRecord, RecordWriter, SideRecord, read_records, show
from sparsepo.inspection.terminal import digit, legend, pair_view, printable, style_of

from .conftest import HOSTILE, trained


def test_records_are_the_trainers_scores(trainer: SparsePOTrainer, records: list[PairRecord]) -> None:
    assert [record.number for record in records] == list(range(16))
    batch = trainer.data_collator(list(trainer.eval_dataset.take(4)))
    scores = trainer.score(batch)
    losses = trainer.objective(scores).loss
    for pair in range(4):
        record = records[pair]
        assert record.loss == pytest.approx(float(losses[pair]), rel=1e-5)
        for name, side in record.sides().items():
            own = getattr(scores, name)
            keep = own.response_mask[pair]
            row = pair + (4 if name == "rejected" else 0)
            assert side.token_ids.tolist() == batch["input_ids"][row, 1:][keep].tolist()
            expected = {
                "reward_mask": own.reward_mask,
                "kl_mask": own.kl_mask,
                "log_ratio": own.policy_logps - own.ref_logps,
                "kl": own.kl,
            }
            for quantity, values in expected.items():
                np.testing.assert_allclose(side.values(quantity), values[pair][keep].numpy(), rtol=1e-4, atol=1e-6)


def test_contributions_add_up_to_the_reward(records: list[PairRecord]) -> None:
    for record in records:
        for side in record.sides().values():
            assert side.contribution is not None
            assert float(side.contribution.sum()) == pytest.approx(side.reward, abs=1e-5)
            assert side.running is not None
            assert float(side.running[-1]) == pytest.approx(side.reward, abs=1e-5)
        assert record.quantities() == list(QUANTITIES)
    assert 0.1 < np.mean([record.zeros() for record in records]) < 0.8


def test_texts_are_whole(trainer: SparsePOTrainer, records: list[PairRecord]) -> None:
    decode = trainer.processing_class.decode
    for record in records:
        for side in record.sides().values():
            assert side.text.strip() == decode(side.token_ids, skip_special_tokens=True).strip()
            for (start, end), piece, special in zip(side.offsets(), side.pieces, side.special, strict=True):
                assert special or side.text[start:end] == piece


@pytest.mark.parametrize(("objective", "missing"), [("dpo", {"reward_mask", "kl_mask", "kl_part"}), ("simpo", set())])
def test_what_an_objective_lacks_is_none(tmp_path: Path, objective: str, missing: set[str]) -> None:
    own = trained(tmp_path, objective=objective, max_steps=1)
    pairs = show(own, limit=2)
    assert len(pairs) == 2
    if objective == "simpo":  # no reference: nothing but the contributions
        missing = set(QUANTITIES) - {"contribution", "running"}
    assert set(QUANTITIES) - set(pairs[0].quantities()) == missing
    assert pairs[0].zeros() is None


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_stored_is_read(records: list[PairRecord], tmp_path: Path, ending: str) -> None:
    empty = SideRecord(np.zeros(0, np.int64), (), np.zeros(0, bool), 0.0, log_ratio=np.zeros(0, np.float32))
    full = records[0]
    odd = PairRecord(99, "g", full.prompt, full.prompt_ids, empty, full.rejected, 0.5, 0.1)
    path = tmp_path / f"tokens.{ending}"
    with RecordWriter(path) as writer:
        for record in [*records, odd]:
            writer.add(record)
    back = list(read_records(path))
    assert len(back) == len(records) + 1
    for before, after in zip([*records, odd], back, strict=True):
        assert (before.number, before.group, before.prompt) == (after.number, after.group, after.prompt)
        assert before.margin == after.margin
        for one, other in zip(before.sides().values(), after.sides().values(), strict=True):
            assert one.pieces == other.pieces
            for name in before.quantities():
                np.testing.assert_array_equal(one.values(name), other.values(name))


def test_a_cut_file_never_has_its_name(records: list[PairRecord], tmp_path: Path) -> None:
    path = tmp_path / "tokens.parquet"

    def interrupted() -> None:
        with RecordWriter(path) as writer:
            writer.add(records[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    with pytest.raises(ValueError, match=r"\.parquet or \.jsonl"):
        RecordWriter(tmp_path / "tokens.csv")
    (tmp_path / "other.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError, match=r"other\.parquet"):
        list(read_records(tmp_path / "other.parquet"))


def test_sides_must_agree_in_length() -> None:
    with pytest.raises(ValueError, match="kl has 3 entries, but there are 2 tokens"):
        SideRecord(np.zeros(2, np.int64), ("a", "b"), np.zeros(2, bool), 0.0, kl=np.zeros(3, np.float32))


# ---- terminal ----


def test_zeros_are_unlike_small_values() -> None:
    assert style_of(0.0, 1.0) != style_of(1e-9, 1.0)
    assert (digit(0.0, 1.0), digit(1e-9, 1.0), digit(5.0, 1.0), digit(-1e-9, 1.0)) == ("₀", "₁", "₉", "₋₁")
    assert len({style_of(value, 1.0) for value in (-1, -0.5, -0.01, 0, 0.01, 0.5, 1)}) == 7


@pytest.mark.parametrize("coloured", [True, False])
def test_the_terminal_shows_every_token_and_no_control(records: list[PairRecord], coloured: bool) -> None:
    console = Console(record=True, width=100, force_terminal=coloured, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(legend("reward_mask", 1.0, False, coloured))
    console.print(pair_view(records[0], "reward_mask", 1.0, coloured))
    text = console.export_text()
    assert "exactly zero" in text
    assert "\u202e" not in text
    assert "⟨202e⟩" in printable(HOSTILE["prompt"])
    assert ("₀" in text) != coloured


def test_notebooks_get_a_sandboxed_page(trainer: SparsePOTrainer) -> None:
    pairs = show(trainer, limit=3)
    found = pairs._repr_html_()
    assert found.startswith('<iframe sandbox="allow-scripts"')
    assert "<script>window" not in found
    assert "3 pairs" in repr(pairs)
    with pytest.raises(ValueError, match="limit=0"):
        show(trainer, limit=0)
