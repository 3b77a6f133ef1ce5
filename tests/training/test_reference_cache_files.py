"""The cache's files: whole or not there, completed, repaired and shared; and the settings that cannot be meant."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from sparsepo.training.caching import cache as cache_module
from sparsepo.training.caching import filling, store

from .cache_runs import (  # noqa: F401 - fixtures
    files_of,
    fill,
    row_files,
    small_files,
    trainer_of,
)
from .running import prepared_rows

pytestmark = pytest.mark.usefixtures("small_files")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 7)


# ---- resuming and damage ----


def test_an_interrupted_cache_goes_on_and_ends_byte_for_byte_the_same(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, rows, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    compute, done = filling.compute_block, []

    def killed(*args: Any) -> dict[str, torch.Tensor]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[2].first)
        return compute(*args)

    monkeypatch.setattr(cache_module, "compute_block", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, rows, tmp_path / "cache")
    assert len(row_files(tmp_path / "cache")) == 2
    assert done == [0, 2]
    monkeypatch.setattr(cache_module, "compute_block", lambda *args: done.append(args[2].first) or compute(*args))
    fill(tmp_path, rows, tmp_path / "cache")
    assert done == [0, 2, 4, 6]  # nothing twice
    assert files_of(tmp_path / "cache") == expected


def test_a_run_that_is_killed_while_it_writes_leaves_no_file(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = store.save_file

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:-10])
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "save_file", half)
    with pytest.raises(OSError, match="no space left"):
        fill(tmp_path, rows, tmp_path / "cache")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.partial"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shorten(path: Path) -> None:
    tensors = {
        name: tensor[:-1] if name in ("identity", "length") else tensor for name, tensor in load_file(path).items()
    }
    store.write_file(path, tensors)


_ANY = (cut, flip, empty, Path.unlink)


@pytest.mark.parametrize(("which", "damage"), [*(("rows", d) for d in (*_ANY, shorten)), *(("head", d) for d in _ANY)])
def test_damaged_and_missing_files_are_computed_again(
    tmp_path: Path, rows: Dataset, caplog: pytest.LogCaptureFixture, damage: Any, which: str
) -> None:
    cache = tmp_path / "cache"
    fill(tmp_path, rows, cache)
    before = files_of(cache)
    path = row_files(cache)[1] if which == "rows" else next(cache.glob("head-*"))
    damage(path)
    assert files_of(cache) != before
    with caplog.at_level(logging.WARNING):
        fill(tmp_path, rows, cache)
    assert files_of(cache) == before
    if damage is not Path.unlink and which == "rows":
        assert f"{path} is damaged" in caplog.text


def test_stale_partial_files_are_taken_away_and_fresh_ones_left(tmp_path: Path, rows: Dataset) -> None:
    fill(tmp_path, rows, tmp_path / "cache")
    folder = row_files(tmp_path / "cache")[0].parent
    row_files(tmp_path / "cache")[0].unlink()
    old, fresh = folder / "rows-x.1-a.partial", folder / "rows-x.2-b.partial"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    fill(tmp_path, rows, tmp_path / "cache")
    assert not old.exists()
    assert fresh.exists()  # another run may be writing it


def test_two_runs_on_one_folder_take_each_others_files(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run that starts while the first has filled half of the cache and goes on beside it."""
    fill(tmp_path, rows, tmp_path / "alone")
    compute, seen = filling.compute_block, []

    def beside(*args: Any) -> dict[str, torch.Tensor]:
        seen.append(args[2].first)
        if seen == [0]:  # the other one comes, and fills all
            fill(tmp_path / "other", rows, tmp_path / "cache")
        return compute(*args)

    monkeypatch.setattr(cache_module, "compute_block", beside)
    fill(tmp_path / "one", rows, tmp_path / "cache")
    assert seen == [0, 0, 2, 4, 6]  # only what was under way is done twice
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "alone")


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "simpo"}, "precompute_ref=True has no effect with objective='simpo', which reads no reference"),
        ({"sync_ref_model": True}, "precompute_ref=True keeps what a fixed reference says, and sync_ref_model=True"),
        (
            {"precompute_ref_log_probs": True},
            r"precompute_ref_log_probs=True .*\(precompute_ref=True, which is set too",
        ),
        ({"precompute_ref": "yes"}, "precompute_ref='yes' must be True or False"),
        ({"precompute_ref_max_gib": 0}, "precompute_ref_max_gib=0 must be above 0"),
        ({"precompute_ref_dir": ""}, "precompute_ref_dir='' must be the path"),
        ({"precompute_ref": False}, "precompute_ref_dir='.*' has no effect without precompute_ref=True"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, rows: Dataset, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, rows, **{"precompute_ref": True, "precompute_ref_dir": str(tmp_path), **settings})


def test_streams_are_refused(tmp_path: Path, rows: Dataset) -> None:
    stream = rows.to_iterable_dataset()
    with pytest.raises(ValueError, match="the training data set is a stream"):
        fill(tmp_path, stream, tmp_path / "cache", max_steps=2)
    with pytest.raises(ValueError, match="the held data set is a stream"):
        fill(tmp_path, rows, tmp_path / "cache", eval_dataset={"held": stream})
    trainer = fill(tmp_path, rows, tmp_path / "cache")
    with pytest.raises(ValueError, match="the evaluation data set is a stream"):
        trainer.evaluate(stream)


def test_the_manifest_says_what_the_numbers_depend_on(tmp_path: Path, rows: Dataset) -> None:
    fill(tmp_path, rows, tmp_path / "cache")
    manifest = json.loads(next((tmp_path / "cache").rglob("manifest.json")).read_text())
    assert manifest["rows"] == 7
    assert manifest["files"] == [path.name for path in row_files(tmp_path / "cache")]
    assert manifest["kept"]["fields"] == {"logps": [], "hidden": [32], "states": [2, 32]}
    assert manifest["reference"]["dtype"] == "torch.float32"
    assert re.fullmatch("[0-9a-f]{64}", manifest["reference"]["weights"])
    assert manifest["format"] == store.FORMAT
