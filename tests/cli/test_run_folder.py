"""Old runs are neither mixed with new ones nor lost by accident."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from sparsepo.cli.base import CliError
from sparsepo.cli.run_folder import (
    SUMMARY,
    claim_output_dir,
    claimed_output_dir,
    command_line,
    resume_point,
    write_summary,
)
from sparsepo.training import sealing
from sparsepo.training.sealing import seal


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    seal(path)
    return path


def test_which_checkpoint_is_resumed(tmp_path: Path) -> None:
    assert resume_point(None, str(tmp_path)) is None
    assert resume_point("false", str(tmp_path)) is None
    assert resume_point("auto", str(tmp_path)) is None
    with pytest.raises(CliError, match="holds no checkpoint that is whole"):
        resume_point("last", str(tmp_path))
    checkpoint(tmp_path, 9)
    last = str(checkpoint(tmp_path, 10))  # by number, not by name
    (tmp_path / "checkpoint-11").mkdir()  # cut off while it was written
    for wish in ("auto", "last", "true", True):
        assert resume_point(wish, str(tmp_path)) == last
    assert resume_point(last, "elsewhere") == last
    with pytest.raises(
        CliError, match=r"no checkpoint there: .*cut off while it was saved; .*checkpoint-9, checkpoint-10"
    ):
        resume_point(str(tmp_path / "checkpoint-11"), str(tmp_path))


def is_refused_elsewhere(folder: Path) -> bool:
    """Whether another process is kept from a folder."""
    child = os.fork()
    if child == 0:
        sealing._held.clear()  # what it has inherited is not its own
        try:
            sealing.refuse_held(folder)
        except sealing.CheckpointError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_claimed_folder_is_the_runs_own_until_the_end(tmp_path: Path) -> None:
    out, console = tmp_path / "out", Console(quiet=True)
    with claimed_output_dir("auto", str(out), False, None, console) as resume:
        assert resume is None
        with sealing.holding(out):  # the trainer's
            assert is_refused_elsewhere(out)
        assert is_refused_elsewhere(out)
        last = checkpoint(out, 3)
    assert not is_refused_elsewhere(out)
    with claimed_output_dir("auto", str(out), False, None, None) as resume:  # another process of the run
        assert resume == str(last)
        assert not is_refused_elsewhere(out)


def test_a_claim_that_fails_leaves_nothing(tmp_path: Path) -> None:
    out, console = tmp_path / "out", Console(quiet=True)
    with (
        pytest.raises(CliError, match="holds no checkpoint"),
        claimed_output_dir("last", str(out), True, None, console),
    ):
        pass
    assert not out.exists()
    with pytest.raises(ZeroDivisionError), claimed_output_dir(None, str(out), False, None, console):
        raise ZeroDivisionError
    assert not out.exists()
    (tmp_path / "file").touch()
    with (
        pytest.raises(CliError, match="is a file"),
        claimed_output_dir(None, str(tmp_path / "file"), False, None, console),
    ):
        pass


def test_new_folders_and_strange_files_are_fine(tmp_path: Path) -> None:
    claim_output_dir(str(tmp_path / "new"), None, False, None)
    (tmp_path / "notes.txt").write_text("mine")
    claim_output_dir(str(tmp_path), None, False, None)
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(
    "trace", [SUMMARY, "config.json", "adapter_config.json", "model.safetensors", "mask/mask.json"]
)
def test_an_old_run_is_refused_and_replaced_on_request(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CliError, match="--overwrite_output_dir replaces it"):
        claim_output_dir(str(tmp_path), None, False, None)
    claim_output_dir(str(tmp_path), None, True, None)
    assert not (tmp_path / trace).exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_is_told_how_to_go_on(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5)
    with pytest.raises(CliError, match=r"checkpoints of a run: --resume_from_checkpoint auto goes on"):
        claim_output_dir(str(tmp_path), None, False, None)
    claim_output_dir(str(tmp_path), str(path), False, None)
    assert path.is_dir()
    claim_output_dir(str(tmp_path), None, True, None)
    assert not path.exists()


def test_the_start_model_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CliError, match="is the model that training starts from"):
        claim_output_dir(str(tmp_path), None, True, str(tmp_path))
    assert (tmp_path / "config.json").exists()
    with pytest.raises(CliError, match="is a file"):
        claim_output_dir(str(tmp_path / "config.json"), None, True, None)


def test_summary_and_command(tmp_path: Path) -> None:
    write_summary(str(tmp_path / "out"), {"a": 1})
    assert json.loads((tmp_path / "out" / SUMMARY).read_text()) == {"a": 1}
    arguments = ["--a", "b c", "--hub_token", "secret", "--hub_token=secret", "--push_to_hub"]
    assert command_line("train", arguments) == (
        "sparsepo train --a 'b c' --hub_token ... --hub_token=... --push_to_hub"
    )
