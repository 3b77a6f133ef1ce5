"""Answers that were paid for, by the content of the request; and who is asking for one right now."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from .database import Database, is_gone, owner_name

_SCHEMA = """
CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, asked REAL NOT NULL);
CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL)
"""
_VERSION = 1
_KNOWN = "SELECT 1 FROM answers WHERE key = ?"
Claim = Literal["answered", "mine", "elsewhere"]


def request_key(body: Mapping[str, Any], source: str | None = None) -> str:
    """Hash of a request: model, messages and sampling settings, and who answers it.

    Args:
        body: what is sent.
        source: :attr:`~.client.Endpoint.source`, since two endpoints may give one name to different models. None: the key
            under which earlier versions kept an answer, which did not say where it came from.
    """
    asked = body if source is None else {"source": source, "request": body}
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def default_cache() -> Path:
    """``judge.sqlite`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sparsepo" / "judge.sqlite"


class AnswerCache:
    """Answers on disk. An answer is written as soon as it is there, so that nothing is paid for twice.

    Before a request is sent it is claimed: of several processes that want the same answer one asks, the others wait. A claim
    ends by itself after its time, and at once if its process was killed on the same machine.

    Args:
        path: of the file; ``":memory:"``: kept nowhere.
        clock: seconds since the epoch.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> None:
        self._database = Database(path, _SCHEMA, _VERSION)
        self._clock = clock
        self._owner = owner_name()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to a request, or None."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that have an answer."""
        with self._database.transaction() as connection:
            return {key for key in set(keys) if connection.execute(_KNOWN, (key,)).fetchone()}

    def adopt(self, older: Mapping[str, str], dry_run: bool = False) -> set[str]:
        """Take over answers that were kept without their endpoint: each goes to the first endpoint that asks for it.

        Args:
            older: key → the key that :func:`request_key` gives without a source.
            dry_run: change nothing.

        Returns:
            Keys of the answers taken over.
        """
        found = set()
        with self._database.transaction() as connection:
            for key, old in older.items():
                known = connection.execute(_KNOWN, (key,)).fetchone()
                if key == old or known or not connection.execute(_KNOWN, (old,)).fetchone():
                    continue
                found.add(key)
                if not dry_run:
                    connection.execute("UPDATE answers SET key = ? WHERE key = ?", (key, old))
        return found

    def claim(self, key: str, seconds: float) -> Claim:
        """Claim a request for some seconds, or prolong one's own claim."""
        now = self._clock()
        with self._database.transaction() as connection:
            if connection.execute(_KNOWN, (key,)).fetchone():
                return "answered"
            row = connection.execute("SELECT owner, until FROM claims WHERE key = ?", (key,)).fetchone()
            if row is not None and row[0] != self._owner and row[1] > now and not is_gone(row[0]):
                return "elsewhere"
            connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._owner, now + seconds))
        return "mine"

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer; the claim on it ends. The first answer stays where two come."""
        with self._database.transaction() as connection:
            text = json.dumps(dict(answer), ensure_ascii=True)
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, text, self._clock()))
            connection.execute("DELETE FROM claims WHERE key = ?", (key,))

    def release(self, key: str) -> None:
        """End one's own claim without an answer."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __len__(self) -> int:
        with self._database.transaction() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0])
