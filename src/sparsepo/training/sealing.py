"""Which checkpoints are whole: a list of their files, written last, and the hold that one run has on its folder.

A checkpoint is a folder of many files, and a process can die between any two of them. The list (``checkpoint_files.json``:
sizes, and checksums of each file's ends) is written when all else is on the disk, so that a folder without it, or that
differs from it, is never resumed from.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SEAL = "checkpoint_files.json"
LOCK, HOLDER = "_run.lock", "_run.json"
_END = 1 << 20  # bytes at either end that are summed: finds lost and zeroed blocks without reading tens of GB
_held: dict[str, int] = {}  # folders that this process holds → how often


class CheckpointError(OSError):
    """A checkpoint that could not be written, or that is not whole; the message says which and why."""


def seal(folder: str | os.PathLike[str]) -> None:
    """Write the list of a checkpoint's files, once all of them are on the disk. The last act of saving."""
    root = Path(folder)
    content = {}
    for path in _files_of(root):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        content[path.relative_to(root).as_posix()] = _facts(path)
    partial = root / f"{SEAL}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"format": 1, "files": content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(root / SEAL)
    for directory in (*(path for path in root.rglob("*") if path.is_dir()), root):
        _sync_folder(directory)


def problem_of(folder: str | os.PathLike[str]) -> str | None:
    """Why a checkpoint cannot be resumed from, or None for a whole one."""
    root = Path(folder)
    if not root.is_dir():
        return "there is no such folder"
    try:
        stated = json.loads((root / SEAL).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(facts["bytes"]), str(facts["crc32"])) for name, facts in stated.items()}
    except FileNotFoundError:
        return f"it has no {SEAL}, which is written last: it was cut off while it was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {SEAL} is damaged ({type(error).__name__})"
    for name, (size, checksum) in expected.items():
        path = root / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            return f"its {SEAL} names {name!r}, outside the checkpoint"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if _facts(path)["crc32"] != checksum:
            return f"{name} has changed since it was saved"
    return None if "trainer_state.json" in expected else "trainer_state.json is missing"


def checkpoint_folders(output_dir: str | os.PathLike[str]) -> list[Path]:
    """All ``checkpoint-N`` folders of a run, whole or not, by number: clocks are not asked."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-([0-9]{1,18})", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def last_whole(output_dir: str | os.PathLike[str], tell: Callable[[str], None] | None = None) -> Path | None:
    """The last whole checkpoint of a run, or None; ``tell`` gets a line for each later one that is not."""
    for path in reversed(checkpoint_folders(output_dir)):
        problem = problem_of(path)
        if problem is None:
            return path
        if tell is not None:
            tell(f"{path.name} is not resumed from: {problem}")
    return None


def rotate(current: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beside a new whole one until ``limit`` are left; never ``current`` nor ``best``."""
    if limit is None or limit <= 0:
        return
    kept = {current.resolve()} | ({Path(best).resolve()} if best else set())
    folders = checkpoint_folders(current.parent)
    others = [path for path in folders if path.resolve() not in kept]
    for path in others[: max(0, len(folders) - max(limit, len(kept)))]:
        remove(path)


def set_aside(output_dir: str | os.PathLike[str], step: int) -> list[Path]:
    """Rename the whole checkpoints after ``step``, so that a run that goes on from there is not overtaken by them.

    Without this, ``auto`` would later go on with the largest number, which belongs to the course that was left.

    Returns:
        Their new folders, ``abandoned-checkpoint-N``.
    """
    moved = []
    for path in checkpoint_folders(output_dir):
        if int(path.name.rpartition("-")[2]) > step and problem_of(path) is None:
            names = (f"abandoned-{path.name}" + (f"-{number}" if number else "") for number in itertools.count())
            moved.append(path.rename(next(path.with_name(name) for name in names if not path.with_name(name).exists())))
    return moved


def remove(folder: Path) -> None:
    """Delete a checkpoint; its list goes first, so that an interruption leaves nothing that looks whole."""
    if folder.is_dir():
        (folder / SEAL).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def holding(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from training into a folder; the operating system lets go of it when this one dies.

    May be nested. A folder that was made for it, and into which nothing was written, is taken away again.

    Raises:
        CheckpointError: another process holds it; says which.
    """
    from filelock import FileLock, Timeout

    folder = Path(output_dir)
    key = str(folder.resolve())
    if _held.get(key):  # a trainer inside a trainer's callback, or two in one process after each other
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(_held_by(folder)) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    _held[key] = 1
    try:
        (folder / HOLDER).write_text(json.dumps(_myself()) + "\n", encoding="utf-8")
        yield
    finally:
        _held.pop(key, None)
        (folder / HOLDER).unlink(missing_ok=True)
        if is_new:
            _remove_unused(folder)
        lock.release()


def _remove_unused(folder: Path) -> None:
    """Take a folder away that holds nothing but the lock; before it is released, so that nobody has taken it since."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def refuse_held(output_dir: str | os.PathLike[str]) -> None:
    """Raise :class:`CheckpointError` if another process trains into a folder. Writes nothing into one without a run."""
    if (Path(output_dir) / LOCK).is_file():
        with holding(output_dir):
            pass


def _held_by(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who = f"process {found['process']} on {found['host']}, started {found['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"output_dir={folder} is in use by {who}: two runs would mix. Wait for it, stop it, or give another folder."


def _myself() -> dict[str, Any]:
    import datetime
    import platform

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": platform.node(), "started": now}


def _files_of(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != SEAL and not path.name.endswith(".partial"):
            yield path


def _facts(path: Path) -> dict[str, Any]:
    """Size of a file, and a checksum of its first and last mebibyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        value = zlib.crc32(file.read(_END))
        if size > _END:
            file.seek(max(_END, size - _END))
            value = zlib.crc32(file.read(_END), value)
    return {"bytes": size, "crc32": f"{value:08x}"}


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere folders cannot be opened
    for path in (folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
