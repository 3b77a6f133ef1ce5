"""A checkpoint is whole or not taken, the reason is said, and one folder belongs to one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.training import sealing
from sparsepo.training.sealing import CheckpointError

from .running import assert_same, build, policy_state, prepared_rows, run_config


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 10)


@pytest.fixture
def run(tmp_path: Path, rows: Dataset) -> Path:
    """A run with checkpoints 1, 2 and 3."""
    build(run_config(tmp_path, save_strategy="steps", save_steps=1), rows).train()
    return tmp_path


def test_every_truncated_or_changed_file_is_found_and_named(run: Path) -> None:
    """Each file of a checkpoint, cut, emptied, changed at its end, and lost: never taken, and the one before it is."""
    last = run / "checkpoint-3"
    assert sealing.problem_of(last) is None
    files = [path for path in sorted(last.rglob("*")) if path.is_file()]
    names = {path.relative_to(last).as_posix() for path in files}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "mask_health.json", sealing.SEAL} <= names
    assert {"mask/mask.safetensors", "mask/mask.json", "rng_state.pth", "scheduler.pt"} <= names
    for path in files:
        content = path.read_bytes()
        damages = {"cut": content[:-1], "emptied": b"", "changed": content[:-1] + bytes([content[-1] ^ 1])}
        if path.name == sealing.SEAL:
            damages.pop("changed")  # its last byte is the closing brace: covered below
        for how, damage in damages.items():
            path.write_bytes(damage)
            said: list[str] = []
            assert sealing.last_whole(run, said.append) == run / "checkpoint-2", (path.name, how)
            assert said[0].startswith("checkpoint-3 is not resumed from: ")
            assert path.name in said[0]
        path.unlink()
        assert path.name in str(sealing.problem_of(last))
        path.write_bytes(content)
    assert sealing.problem_of(last) is None


@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), st.just(b"[" * 100_000)))
def test_any_list_of_files_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / sealing.SEAL).write_bytes(content)
    assert "damaged" in str(sealing.problem_of(tmp_path))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_a_list_that_names_other_folders_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / sealing.SEAL).write_text(json.dumps({"files": {name: {"bytes": 1, "crc32": "8cdc1683"}}}))
    assert "outside the checkpoint" in str(sealing.problem_of(folder))


def test_a_broken_checkpoint_is_refused_by_the_trainer(
    run: Path, rows: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    trainer = build(run_config(run, max_steps=4), rows)
    with pytest.raises(CheckpointError, match=r"checkpoint-3: optimizer.pt has 0 bytes instead of"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert "checkpoint-3 is not resumed from: optimizer.pt" in caplog.text


@pytest.mark.parametrize("failing", ["optimizer.pt", "model.safetensors", sealing.SEAL])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(
    tmp_path: Path, rows: Dataset, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(run_config(tmp_path / "whole"), rows)
    whole.train()
    out = tmp_path / "out"
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = build(run_config(out, **settings), rows)
    with monkeypatch.context() as patch:
        _fill_disk(patch, failing, at="checkpoint-2")
        with pytest.raises(
            CheckpointError, match=r"checkpoint-2 could not be written .*No space left.*GiB are free"
        ) as e:
            trainer.train()
    assert "checkpoint-1 is the last whole checkpoint" in str(e.value)
    assert [path.name for path in sealing.checkpoint_folders(out)] == ["checkpoint-1"]
    resumed = build(run_config(out, **settings), rows)
    resumed.train(resume_from_checkpoint=True)
    assert_same(policy_state(resumed), policy_state(whole))
    assert [path.name for path in sealing.checkpoint_folders(out)] == ["checkpoint-3"]


def _fill_disk(patch: pytest.MonkeyPatch, failing: str, at: str) -> None:
    """Writing one file of one checkpoint raises what a full disk raises there."""
    import errno

    import torch
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save, save_model, seal = torch.save, PreTrainedModel.save_pretrained, sealing.seal

    def torch_save(content: object, file: object, *args: object, **kwargs: object) -> None:
        if at in str(file) and str(file).endswith(failing):
            Path(str(file)).write_bytes(b"PK")  # its beginning
            raise RuntimeError(f"PytorchStreamWriter failed writing file data/0: {full}")
        save(content, file, *args, **kwargs)

    def model_save(self: object, folder: object, *args: object, **kwargs: object) -> None:
        if at in str(folder) and failing == "model.safetensors":
            raise SafetensorError(f"I/O error: {full}")
        save_model(self, folder, *args, **kwargs)

    def sealed(folder: object) -> None:
        if at in str(folder) and failing == sealing.SEAL:
            raise full
        seal(folder)

    patch.setattr(torch, "save", torch_save)
    patch.setattr(PreTrainedModel, "save_pretrained", model_save)
    patch.setattr(sealing, "seal", sealed)


def test_old_checkpoints_go_by_number_whatever_the_clock_says(tmp_path: Path, rows: Dataset) -> None:
    """A clock that is set back makes later checkpoints look older: the newest step stays nevertheless."""
    from transformers import TrainerCallback

    class ClockIsSetBack(TrainerCallback):
        def on_save(self, args: object, state: object, control: object, **kwargs: object) -> None:
            for age, path in enumerate(sealing.checkpoint_folders(tmp_path)):
                os.utime(path, (2_000_000_000 - 10_000 * age,) * 2)

    config = run_config(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=5)
    trainer = build(config, rows)
    trainer.add_callback(ClockIsSetBack())
    trainer.train()
    assert [path.name for path in sealing.checkpoint_folders(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
    assert sealing.last_whole(tmp_path) == tmp_path / "checkpoint-5"


def test_rotation_spares_the_new_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    sealing.rotate(tmp_path / "checkpoint-3", 2, str(tmp_path / "checkpoint-1"))
    assert [path.name for path in sealing.checkpoint_folders(tmp_path)] == ["checkpoint-1", "checkpoint-3"]
    sealing.rotate(tmp_path / "checkpoint-3", None, None)
    sealing.rotate(tmp_path / "checkpoint-3", 1, None)
    assert [path.name for path in sealing.checkpoint_folders(tmp_path)] == ["checkpoint-3"]


HOLD = """
import sys, time
from sparsepo.training.sealing import holding
with holding(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_folder_belongs_to_one_process_until_it_dies(tmp_path: Path, rows: Dataset) -> None:
    sealing.refuse_held(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        trainer = build(run_config(tmp_path), rows)
        for attempt in (trainer.train, lambda: sealing.refuse_held(tmp_path)):
            with pytest.raises(CheckpointError, match=rf"in use by process {other.pid} on .*started 2"):
                attempt()
        assert trainer.state.global_step == 0
    finally:
        other.kill()  # no chance to tidy up
        other.wait()
    for _ in range(50):
        try:
            sealing.refuse_held(tmp_path)
            break
        except CheckpointError:
            time.sleep(0.1)
    trainer.train()
    assert trainer.state.global_step == 3


def test_holding_may_be_nested(tmp_path: Path) -> None:
    with sealing.holding(tmp_path), sealing.holding(tmp_path):
        pass
    assert not (tmp_path / sealing.HOLDER).exists()
