"""What is known of files, remembered until they change, in a database whose entries are checked."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from ..base.hashing import key_of

# A file changed in the last moments may change again within one tick of its times.
SETTLED_SECONDS = 2.0

# What says nothing about the database itself: it is in use, or its disk or the memory can't be
# used now.
PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}  # fmt: skip

Result = TypeVar("Result")


class Index:
    """What is known of files, by (size, mtime_ns, inode): a second parse only stats.

    Entries found are kept in memory and committed in one transaction at the end. Where
    the user may not write to `path`, it is read, and the user's own index takes what is
    new. All that an index knows can be found again: an entry that is damaged is looked up
    again, and a database that can't be used is done without.
    """

    def __init__(self, path: Path) -> None:
        places = [path] if _writable(path) else [path, _own_index()]
        self._databases = [_Database(place) for place in places]
        self._new: dict[str, str] = {}
        self._read: dict[str, str] = {}  # `knows` and `recall` ask for the same

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        """What was found before an error is remembered too."""
        if self._new:
            self._databases[-1].put(self._new)
        self._new.clear()
        for database in self._databases:
            database.close()

    def recall(self, files: Iterable[str | Path], about: Any, find: Callable[[], Any]) -> Any:
        """The JSON value of `find()` for these files, remembered until one of them changes."""
        files = list(files)
        states = [_state(file) for file in files]
        name = key_of([states, about])
        known = self._known(name)
        if known is not None:
            return json.loads(known)
        started = time.time_ns()
        value = json.dumps(find())
        newest = max((max(state[1], state[4]) for state in states), default=0)
        settled = started - newest > SETTLED_SECONDS * 1e9
        if settled and states == [_state(file) for file in files]:
            self._new[name] = value
        return json.loads(value)

    def knows(self, files: Iterable[str | Path], about: Any) -> bool:
        return self._known(key_of([[_state(file) for file in files], about])) is not None

    def _known(self, name: str) -> str | None:
        for held in (self._new, self._read):
            if name in held:
                return held[name]
        for database in self._databases:
            if (value := database.get(name)) is not None:
                self._read[name] = value
                return value
        return None


class _Database:
    """Entries on disk, each with a checksum.

    One that can't be used now (locked, on a disk without locks or space, closed to the
    user) is done without. One that is damaged is put aside, and a new one is begun.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._usable = True

    def get(self, name: str) -> str | None:
        """The value of an entry; None where there is none, or it is damaged."""
        query = "SELECT value, checksum FROM entries WHERE id = ?"
        row = self._tried(lambda database: database.execute(query, (name,)).fetchone())
        if row and isinstance(row[0], bytes) and row[1] == _checksum(name, row[0]):
            return row[0].decode()
        return None

    def put(self, entries: dict[str, str]) -> None:
        """Write entries in one transaction."""
        rows = [(name, value, _checksum(name, value.encode())) for name, value in entries.items()]

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("REPLACE INTO entries VALUES (?, ?, ?)", rows)
                database.execute("DROP TABLE IF EXISTS known")  # of versions without checksums

        self._tried(write)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _tried(self, action: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """What an action gives; None where the database can't be used."""
        for _ in range(2):
            if not self._usable:
                break
            try:
                return action(self._opened())
            except (sqlite3.Error, MemoryError) as error:  # the latter of a length that is damaged
                self._usable = self._is_damaged(error) and self._put_aside()
        return None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            # Before it is opened: what is begun meanwhile is not what is found damaged.
            self._inode = _inode(self._path)
            self._connection = sqlite3.connect(self._path, timeout=30)
            self._connection.text_factory = bytes  # a damaged text need not be UTF-8
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS entries "
                "(id TEXT PRIMARY KEY, value TEXT, checksum BLOB) WITHOUT ROWID"
            )
        return self._connection

    def _is_damaged(self, error: Exception) -> bool:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_READONLY:  # a damaged header says so, too
            return _writable(self._path)
        return code not in PASSING

    def _put_aside(self) -> bool:
        """Whether there is room for a new database: this one was put aside, by us or others."""
        self.close()
        if self._inode != _inode(self._path):  # another process began a new one
            return True
        aside = self._path.with_name(f"{self._path.name}.damaged")
        try:
            for kind in ("journal", "wal", "shm"):
                self._path.with_name(f"{self._path.name}-{kind}").unlink(missing_ok=True)
            os.replace(self._path, aside)
        except OSError:
            return False
        print(
            f"{self._path} was damaged: it is kept as {aside}, and what it knew of files is "
            "looked up again",
            file=sys.stderr,
        )
        return True


def _checksum(name: str, value: bytes) -> bytes:
    return blake3(name.encode() + b"\n" + value).digest(16)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _writable(path: Path) -> bool:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _own_index() -> Path:
    """For folders of others: entries say nothing of the folder that they were made in."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root, "tokencache", "index.sqlite")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _state(file: str | Path) -> tuple[int, ...]:
    """The time of change too: a copy that keeps the time of writing (`cp -p`) moves it."""
    about = os.stat(file)
    file_system = _file_system(about.st_dev, file)
    return about.st_size, about.st_mtime_ns, about.st_ino, file_system, about.st_ctime_ns


_file_systems: dict[int, int] = {}


def _file_system(device: int, file: str | Path) -> int:
    """A number for a file system that is the same on all machines that mount it.

    Each machine gives out its own device numbers, and an index serves many machines.
    """
    if device not in _file_systems:
        _file_systems[device] = os.statvfs(file).f_fsid
    return _file_systems[device]
