"""Masks while training: what the callback keeps, that training does not notice it, and the page with its slider."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsepo import SparsePOTrainer
from sparsepo.inspection.history import MaskHistory, picture, read_history, record_masks, snapshots
from tests.inspection.conftest import HOSTILE, byte_tokenizer, does_not_overflow, watched
from tests.support import preference_rows, tiny_model
from tests.training.running import assert_same, mask_state, policy_state, run_config

TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def build(folder: Path, **settings: Any) -> SparsePOTrainer:
    from datasets import Dataset

    rows = Dataset.from_list([HOSTILE, *preference_rows(15)])
    sizes = {"vocab_size": len(byte_tokenizer()), "n_positions": 512, "max_position_embeddings": 512}
    torch.manual_seed(0)
    return SparsePOTrainer(
        model=tiny_model("gpt2", **sizes),
        ref_model=tiny_model("gpt2", **sizes),
        args=run_config(folder, **{"max_steps": 6, "learning_rate": 1e-3, **settings}),
        train_dataset=rows,
        eval_dataset=rows.select(range(5)),
        processing_class=byte_tokenizer(),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SparsePOTrainer:
    folder = tmp_path_factory.mktemp("history")
    trainer = build(folder, report_to="tensorboard" if TENSORBOARD else "none", mask_target_sparsity=0.4)
    record_masks(trainer, pairs=3, every=2)
    trainer.train()
    return trainer


def test_snapshots_hold_the_masks_of_their_step(run: SparsePOTrainer) -> None:
    history = read_history(run.args.output_dir)
    assert list(history) == [0, 2, 4, 6]
    assert {len(records) for records in history.values()} == {3}
    batch = run.data_collator([run.eval_dataset[place] for place in range(3)])
    scores = run.score(batch)
    for place, record in enumerate(history[6]):
        keep = scores.chosen.response_mask[place]
        assert np.array_equal(record.chosen.reward_mask, scores.chosen.reward_mask[place][keep].numpy())
    assert all((record.chosen.log_ratio == 0).all() for record in history[0])
    assert any((record.chosen.log_ratio != 0).any() for record in history[2])


@pytest.mark.parametrize("settings", [{}, {"mask_gate": "gumbel_sigmoid", "mask_dropout": 0.2}])
def test_training_does_not_notice(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain, watched_run = build(tmp_path / "a", **settings), build(tmp_path / "b", **settings)
    record_masks(watched_run, pairs=2, every=1)
    for trainer in (plain, watched_run):
        trainer.train()
    assert_same(policy_state(plain), policy_state(watched_run))
    assert_same(mask_state(plain), mask_state(watched_run))


def test_a_resumed_run_goes_on_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    first = build(tmp_path, **settings)
    record_masks(first, pairs=1, every=1)
    first.train()
    before = read_history(tmp_path)
    assert list(before) == list(range(7))
    second = build(tmp_path, **settings)
    kept: list[list[int]] = []
    history = record_masks(second, pairs=1, every=1)
    begin = history.on_train_begin

    def noted(*args: Any, **kwargs: Any) -> None:
        begin(*args, **kwargs)
        kept.append(list(snapshots(history.folder)))

    history.on_train_begin = noted  # type: ignore[method-assign]
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert kept == [[0, 1, 2, 3, 4]]
    after = read_history(tmp_path)
    assert list(after) == list(before)
    for step, records in after.items():
        assert np.array_equal(records[0].chosen.reward_mask, before[step][0].chosen.reward_mask)
    third = build(tmp_path, max_steps=1)
    record_masks(third, pairs=1)
    third.train()
    assert list(read_history(tmp_path)) == [0, 1]


def test_a_run_goes_on_where_its_pages_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tmp_path, max_steps=3)
    record_masks(trainer, pairs=1, every=1)

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sparsepo.inspection.history.write_history_page", full)
    trainer.train()
    assert trainer.state.global_step == 3
    (message,) = [record.getMessage() for record in caplog.records if "were not kept" in record.getMessage()]
    assert "step 0" in message
    assert "disk full" in message


def test_tensorboard_gets_histograms_and_a_picture(run: SparsePOTrainer) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, IMAGES, EventAccumulator

    found: dict[str, list[int]] = {}
    for folder in {path.parent for path in Path(run.args.output_dir).rglob("events.out*")}:
        events = EventAccumulator(str(folder), size_guidance={HISTOGRAMS: 0, IMAGES: 0}).Reload()
        for tag in events.Tags()[HISTOGRAMS]:
            found[tag] = [event.step for event in events.Histograms(tag)]
        for tag in events.Tags()[IMAGES]:
            found[tag] = [event.step for event in events.Images(tag)]
    assert found["masks/reward mask"] == [0, 2, 4, 6]
    assert found["masks/pairs"] == [0, 2, 4, 6]


class _Logger:
    """Stands for the module of W&B or trackio, which both have these."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def Histogram(self, values: Any) -> tuple[str, int]:  # noqa: N802
        return "histogram", len(values)

    def Image(self, pixels: Any) -> tuple[str, tuple[int, ...]]:  # noqa: N802
        return "image", pixels.shape

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


@pytest.mark.parametrize(("name", "attribute"), [("WandbCallback", "_wandb"), ("TrackioCallback", "_trackio")])
def test_other_loggers_get_the_same(run: SparsePOTrainer, name: str, attribute: str) -> None:
    from transformers import integrations

    from sparsepo.inspection.history import _report

    kind = getattr(integrations, name)
    callback = kind.__new__(kind)  # without its package
    logger = _Logger()
    callback._initialized = True
    setattr(callback, attribute, logger)
    _report([callback], read_history(run.args.output_dir)[6], 6)
    assert logger.logged[0]["masks/reward mask"][0] == "histogram"
    assert logger.logged[0]["masks/pairs"][0] == "image"
    assert logger.logged[0]["train/global_step"] == 6


def test_the_picture_shows_zeros_unlike_small_values(run: SparsePOTrainer) -> None:
    pixels = picture(read_history(run.args.output_dir)[6])
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_the_slider_shows_every_step(run: SparsePOTrainer, browser: Any) -> None:
    history = read_history(run.args.output_dir)
    with watched(browser, Path(run.args.output_dir) / "masks.html") as page:
        assert page.text_content("#step-name") == "step 6"
        page.evaluate("setLayer('reward_mask')")
        for place, step in enumerate(history):
            page.evaluate(f"setFrame({place})")
            assert page.text_content("#step-name") == f"step {step}"
            page.locator(".tokens[data-side=chosen] .token").nth(1).hover()
            shown = page.locator("#details dd").nth(1).text_content()
            assert np.float32(shown) == history[step][0].chosen.reward_mask[1]
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#step-name") == "step 4"
        page.keyboard.press("j")
        assert page.input_value("#pair") == "1"
        assert page.evaluate("window.broken === undefined")
    with watched(browser, Path(run.args.output_dir) / "masks.html", width=375) as page:
        assert does_not_overflow(page)


@pytest.mark.parametrize(("settings", "message"), [({"pairs": 0}, "pairs=0"), ({"every": 0}, "every=0")])
def test_bad_settings_are_refused(run: SparsePOTrainer, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_masks(run, **settings)
    with pytest.raises(ValueError, match="at least one pair"):
        MaskHistory(run, [])
