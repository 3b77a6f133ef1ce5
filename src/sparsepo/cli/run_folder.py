"""The folder of a run: what may be there before, where to resume, and the summary that it ends with."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsepo.redaction import is_secret_name, redacted, redacted_content

from .base import CliError

SUMMARY = "train_summary.json"
# What a run leaves behind: found in a folder, they mean that a run lives there
_TRACES = (SUMMARY, "sparsepo.json", "config.json", "adapter_config.json", "*.safetensors", "mask/mask.json")
_PAGES = ("report.html", "masks.html", "pairs.html", "report_plots", "mask_history", "samples.jsonl")
_OWN = (*_TRACES[:-1], "*.safetensors.index.json", "trainer_state.json", "mask_health.json", "non_finite", *_PAGES)


def checkpoints_in(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    from sparsepo.training.sealing import checkpoint_folders, problem_of

    return [path for path in checkpoint_folders(folder) if problem_of(path) is None]


def resume_point(wish: str | bool | None, output_dir: str, console: Any = None) -> str | None:
    """Which checkpoint to resume from.

    Args:
        wish: None or "false": none; "auto": the last whole one if there is any; "last" or "true": the last whole one;
            else a path.
        output_dir: the run's folder.
        console: where to say which later checkpoints are not whole, and why; None: nowhere.

    Raises:
        CliError: there is no such checkpoint, or it is not whole.
    """
    text = str(wish).lower() if wish is not None else "false"
    if text in ("false", "none", ""):
        return None
    from sparsepo.training.sealing import last_whole, problem_of

    from .tables import say

    if text in ("auto", "last", "true"):
        found = last_whole(output_dir, lambda line: say(console, line))
        if found is not None:
            return str(found)
        if text == "auto":
            return None
        raise CliError(f"resume_from_checkpoint={wish}: {output_dir} holds no checkpoint that is whole.")
    problem = problem_of(str(wish))
    if problem is not None:
        there = ", ".join(entry.name for entry in checkpoints_in(Path(output_dir))) or "none"
        raise CliError(
            f"resume_from_checkpoint={wish}: no checkpoint there: {problem}; whole ones in {output_dir}: {there}."
        )
    return str(wish)


@contextmanager
def claimed_output_dir(
    wish: str | bool | None, output_dir: str, overwrite: bool, start: str | None, console: Any
) -> Iterator[str | None]:
    """A context in which the run's folder is its own, up to the last file: no other process trains into it.

    Args:
        wish: checkpoint to resume from, as :func:`resume_point` takes it.
        output_dir, overwrite, start: as :func:`claim_output_dir` takes them.
        console: of the first process, which holds the folder for all; None in the others.

    Yields:
        The checkpoint that the run goes on from, or None.

    Raises:
        CheckpointError, CliError: as those two do.
    """
    if console is None:
        yield resume_point(wish, output_dir)
        return
    from sparsepo.training.sealing import holding

    refuse_output_dir(output_dir, start)
    with holding(output_dir):
        resume = resume_point(wish, output_dir, console)
        claim_output_dir(output_dir, resume, overwrite, start)
        yield resume


def refuse_output_dir(output_dir: str, start: str | None) -> None:
    """Raise :class:`CliError` for a run's folder that is a file, or the model that training starts from."""
    folder = Path(output_dir)
    if start is not None and Path(start).is_dir() and folder.is_dir() and Path(start).samefile(folder):
        raise CliError(f"output_dir={output_dir} is the model that training starts from; give another folder.")
    if folder.exists() and not folder.is_dir():
        raise CliError(f"output_dir={output_dir} is a file; give a folder.")


def claim_output_dir(output_dir: str, resume: str | None, overwrite: bool, start: str | None) -> None:
    """Make sure that a new run does not mix with an old one.

    Args:
        output_dir: the run's folder; made by the trainer.
        resume: checkpoint that the run goes on from.
        overwrite: replace the old run: its checkpoints, weights, mask and summary are deleted, other files stay.
        start: the model that training starts from.

    Raises:
        CheckpointError: another process trains into the folder.
        CliError: the folder holds a run and neither resuming nor overwriting was asked for; or it is the start model.
    """
    folder = Path(output_dir)
    refuse_output_dir(output_dir, start)
    from sparsepo.training.sealing import refuse_held

    refuse_held(folder)
    checkpoints = checkpoints_in(folder)
    traces = [pattern for pattern in _TRACES if any(folder.glob(pattern))]
    if resume is not None or not (checkpoints or traces):
        return
    if not overwrite:
        state = (
            "a finished run" if (folder / SUMMARY).is_file() else "checkpoints of a run" if checkpoints else "a model"
        )
        go_on = "--resume_from_checkpoint auto goes on with it, " if checkpoints else ""
        raise CliError(
            f"output_dir={output_dir} holds {state}: {go_on}--overwrite_output_dir replaces it; or give another folder."
        )
    for pattern in (*_OWN, "checkpoint-*", "mask"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_summary(output_dir: str, content: dict[str, Any]) -> dict[str, Any]:
    """Write ``train_summary.json``, whole or not at all; returns what was given, without secrets."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = redacted_content(content)
    partial = folder / f"{SUMMARY}.partial"
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str, allow_nan=True)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / SUMMARY)
    return content


def command_line(command: str, arguments: Sequence[str]) -> str:
    """The command to repeat a run, without access tokens."""
    hidden: list[str] = []
    for item in arguments:
        name = item.split("=", 1)[0]
        is_value = bool(hidden) and hidden[-1].startswith("--") and is_secret_name(hidden[-1])
        if is_value and not item.startswith("--"):
            hidden.append("...")
        elif name.startswith("--") and is_secret_name(name) and "=" in item:
            hidden.append(f"{name}=...")
        else:
            hidden.append(redacted(item))
    return shlex.join(["sparsepo", command, *hidden])
