"""Who is at which piece of work, on a folder that several machines share: claim files with a heartbeat.

A claim is a file ``KEY.N`` that is made whole and only if it is not there (a hard link, which is atomic on local file
systems and on NFS). Its holder touches it every few seconds. A claim that nobody has touched for ``stale_after`` seconds
is taken over by making ``KEY.N+1``: of several takers one succeeds, and who held ``KEY.N`` sees that it lost. On the
machine of the holder a claim whose process has ended is taken over at once.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

STALE_AFTER = 300.0
BEATS = 10  # heartbeats within ``stale_after``


class ClaimLostError(RuntimeError):
    """Another process has taken the work over."""


@dataclass(frozen=True)
class Holder:
    """Who holds a claim.

    Args:
        host, pid: of its process.
        place: tells machines and containers apart whose names are alike; "" where that is not known.
        born: when its process started, in the machine's own units; "" where that is not known.
        since: when it took the claim, seconds since 1970 by its own clock.
    """

    host: str
    pid: int
    place: str
    born: str
    since: float

    def has_ended(self) -> bool:
        """Whether it is known that its process has ended: only a process of the same machine can know."""
        here = own_holder()
        if not self.place or self.place != here.place or self.host != here.host:
            return False
        return _birth(self.pid) != self.born


@dataclass(frozen=True)
class Claim:
    """A claim as it lies there.

    Args:
        number: which taking of this key.
        holder: who took it; None for a file that cannot be read.
        age: seconds since its last heartbeat, by the file system's clock.
    """

    number: int
    holder: Holder | None
    age: float

    def is_stale(self, stale_after: float) -> bool:
        """Whether it may be taken over."""
        return self.age > stale_after or (self.holder is not None and self.holder.has_ended())


class Claims:
    """Claims in one folder.

    Args:
        folder: shared; made if it is not there.
        stale_after: seconds without a heartbeat after which a claim may be taken over. Every process of an experiment
            should have the same.

    Raises:
        ValueError: ``stale_after`` is not above 0.
    """

    def __init__(self, folder: str | Path, stale_after: float = STALE_AFTER) -> None:
        if not stale_after > 0:
            raise ValueError(f"stale_after={stale_after!r} must be a number of seconds above 0.")
        self.folder, self.stale_after = Path(folder), stale_after
        self.folder.mkdir(parents=True, exist_ok=True)

    def current(self, key: str) -> Claim | None:
        """The claim on a key, stale or not; None: nobody claims it."""
        numbers = self._numbers(key)
        for number in sorted(numbers, reverse=True):
            path = self._path(key, number)
            try:
                age = self._now() - path.stat().st_mtime
                return Claim(number, _read_holder(path), age)
            except FileNotFoundError:  # released between two looks
                continue
        return None

    def take(self, key: str) -> Held | None:
        """Claim a key; None where somebody else works on it."""
        found = self.current(key)
        if found is not None and not found.is_stale(self.stale_after):
            return None
        number = 1 if found is None else found.number + 1
        if not self._make(self._path(key, number)):
            return None
        return Held(self, key, number)

    def held_by_other(self, key: str, number: int) -> bool:
        """Whether a later claim than ``number`` is there, or that one is gone."""
        numbers = self._numbers(key)
        return not numbers or max(numbers) != number

    def beat(self, key: str, number: int) -> None:
        """Say that the holder is alive."""
        os.utime(self._path(key, number))

    def release(self, key: str, number: int) -> None:
        """Give a claim back, with those that it took over; a later one stays."""
        for own in sorted(own for own in self._numbers(key) if own <= number):
            self._path(key, own).unlink(missing_ok=True)

    def _path(self, key: str, number: int) -> Path:
        return self.folder / f"{key}.{number}"

    def _numbers(self, key: str) -> list[int]:
        pattern = re.compile(re.escape(key) + r"\.(\d+)")
        return [int(match[1]) for name in os.listdir(self.folder) if (match := pattern.fullmatch(name))]

    def _make(self, path: Path) -> bool:
        """Make a claim file with its whole content, if there is none."""
        handle, name = tempfile.mkstemp(prefix=".claim-", dir=self.folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(own_holder()), file)
            try:
                os.link(name, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return _make_exclusively(path, Path(name).read_bytes())
            return True
        finally:
            os.unlink(name)

    def _now(self) -> float:
        """The time of the clock that stamps the claims: machines' clocks differ."""
        with tempfile.NamedTemporaryFile(prefix=".clock-", dir=self.folder) as file:
            os.utime(file.name)
            return os.stat(file.name).st_mtime


class Held:
    """A claim that this process holds; a context that beats, and releases at its end.

    Args:
        claims: where.
        key, number: which.
    """

    def __init__(self, claims: Claims, key: str, number: int) -> None:
        self.claims, self.key, self.number = claims, key, number
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.when_lost: Callable[[], None] | None = None

    def __enter__(self) -> Held:
        self._thread = threading.Thread(target=self._beat, name=f"claim {self.key}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.claims.release(self.key, self.number)

    def check(self) -> None:
        """Raise :class:`ClaimLostError` if somebody has taken the work over."""
        if self.claims.held_by_other(self.key, self.number):
            raise ClaimLostError(
                f"{self.key}: another process has taken this over, since nothing was heard of this one for "
                f"{self.claims.stale_after:g} s."
            )

    def _beat(self) -> None:
        while not self._ended.wait(self.claims.stale_after / BEATS):
            try:
                self.claims.beat(self.key, self.number)
                lost = self.claims.held_by_other(self.key, self.number)
            except FileNotFoundError:
                lost = True
            except OSError:  # a share that is away for a moment: the next beat will tell
                continue
            if lost and not self._ended.is_set():
                if self.when_lost is not None:
                    self.when_lost()
                return


def own_holder() -> Holder:
    """This process, from now on."""
    return Holder(socket.gethostname(), os.getpid(), _place(), _birth(os.getpid()), time.time())


def _make_exclusively(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return True


def _read_holder(path: Path) -> Holder | None:
    text = path.read_text(encoding="utf-8")
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _place() -> str:
    """The running system and its space of process numbers: containers of one name need not share them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _birth(pid: int) -> str:
    """When a process started: a number may be given to another one later. "" for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie works no more
