"""SQLite files that several processes may use at once and that a killed one leaves whole."""

from __future__ import annotations

import os
import socket
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 60.0  # seconds for another process's write


class Database:
    """A connection with transactions that take the write lock at once, so that no two processes read and then both write.

    Args:
        path: of the file, made with its folder where there is none; ``":memory:"``: kept nowhere.
        schema: statements that make its tables where they lack.
        version: of the schema; a file of another is refused.

    Raises:
        ValueError: the file is no such database, or of another version; says what to do.
        OSError: it cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike[str], schema: str, version: int) -> None:
        self.path = str(path)
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        # The rollback journal, not the write-ahead log: that one does not work on network file systems. A notebook asks from
        # a thread of its own, while the one that opened the file waits.
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}.") from error
        try:
            with self.transaction() as connection:
                (found,) = connection.execute("PRAGMA user_version").fetchone()
                if found == 0:
                    for statement in schema.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {version}")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ValueError(f"{self.path}: not a usable SQLite file ({error}); name another, or remove it.") from error
        if found not in (0, version):
            self._connection.close()
            raise ValueError(
                f"{self.path}: made by another version of the library ({found}, not {version}); name another."
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what is executed in it.

        Raises:
            OSError: another process holds the file for long, or it cannot be written (a full disk, missing rights).
        """
        self._do("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._do("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _do(self, statement: str) -> None:
        try:
            self._connection.execute(statement)
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error} (held by another process, or not to be written).") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def owner_name() -> str:
    """A name for what this process holds: machine, process and a random part."""
    return f"{socket.gethostname()}|{os.getpid()}|{uuid.uuid4().hex}"


def is_gone(owner: str) -> bool:
    """Whether the process of an owner's name has certainly ended: it ran on this machine and is not there."""
    host, process, _ = owner.split("|")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
