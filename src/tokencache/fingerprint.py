"""Sources cut into shards where their content says, and hashed; nothing is read twice.

A cut is a property of the bytes around it, never of an offset: a row ends a shard
when its own hash says so (content-defined chunking, as in Muthitacharoen et al.,
"A Low-Bandwidth Network File System", 2001). So an insertion changes the shard it
falls into and moves no later cut.
"""

from __future__ import annotations

import json
import mmap
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from . import sources
from .errors import UserError
from .files import KEY_DIGITS, hash_file, key_of
from .progress import Progress
from .references import Reference
from .sources import Piece, Source

# Raise when the same bytes are cut at other places than before.
CUT_VERSION = 1

# A file changed in the last moments may change again within one tick of its times.
SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Shard:
    """One piece of a source and the key of its bytes."""

    key: str
    piece: Piece
    bytes: int


class Index:
    """What is known of files, by (size, mtime_ns, inode): a second parse only stats.

    Entries found are kept in memory and committed in one transaction at the end. Where
    the user may not write to `path`, it is read, and the user's own index takes what is
    new. All that an index knows can be found again, so one that can't be read or
    written (locked, broken, on a disk without locks) is done without.
    """

    def __init__(self, path: Path) -> None:
        places = [path] if _writable(path) else [path, _own_index()]
        self._databases = [found for place in places if (found := _database(place))]
        self._new: dict[str, str] = {}

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        """What was found before an error is remembered too."""
        self._save()
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
        if name in self._new:
            return self._new[name]
        for database in self._databases:
            with suppress(sqlite3.DatabaseError):
                row = database.execute("SELECT value FROM known WHERE id = ?", (name,)).fetchone()
                if row:
                    return row[0]
        return None

    def _save(self) -> None:
        if self._new and self._databases:
            with suppress(sqlite3.DatabaseError), self._databases[-1] as database:
                database.executemany("REPLACE INTO known VALUES (?, ?)", self._new.items())
        self._new.clear()


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


def _database(path: Path) -> sqlite3.Connection | None:
    try:
        return _opened(path)
    except sqlite3.OperationalError:  # no such folder, locked, no locks: it may be in use
        return None
    except sqlite3.DatabaseError:  # broken, and maybe by something that was not finished
        with suppress(OSError, sqlite3.DatabaseError):
            for file in (path, path.with_name(f"{path.name}-journal")):
                file.unlink(missing_ok=True)
            return _opened(path)
        return None


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30)
    database.execute("CREATE TABLE IF NOT EXISTS known (id TEXT PRIMARY KEY, value TEXT)")
    return database


def _state(file: str | Path) -> tuple[int, ...]:
    """The time of change too: a copy that keeps the time of writing (`cp -p`) moves it."""
    about = os.stat(file)
    file_system = _file_system(about.st_dev, file)
    return about.st_size, about.st_mtime_ns, about.st_ino, file_system, about.st_ctime_ns


_file_systems: dict[int, int] = {}


def _file_system(device: int, file: str | Path) -> int:
    """A number for a file system that is the same on all machines that mount it.

    Device numbers are given out by each machine anew, and an index serves many.
    """
    if device not in _file_systems:
        _file_systems[device] = os.statvfs(file).f_fsid
    return _file_systems[device]


def shards(
    found: list[Source], shard_size: int, index: Index, label: str
) -> tuple[list[list[Shard]], list[list[str]]]:
    """The shards of each source in the order of its rows, and the columns of each source.

    Reads only files that the index does not know, with a progress line.
    """
    about = [_how(source, shard_size) for source in found]
    new = [
        source
        for source, how in zip(found, about, strict=True)
        if not index.knows([source.path], how)
    ]
    sizes = {source: os.stat(source.path).st_size for source in new}
    cuts, columns = [], []
    with Progress(sum(sizes.values()), "bytes", f"hash {label}") if new else nullcontext() as shown:
        told = shown.update if new else _nobody
        for source, how in zip(found, about, strict=True):
            known = index.recall([source.path], how, partial(_looked_at, source, shard_size, told))
            columns.append(known["columns"])
            cuts.append([Shard(k, Piece(source, a, b), n) for k, a, b, n in known["shards"]])
    return cuts, columns


def is_known(source: Source, shard_size: int, index: Index) -> bool:
    """Whether `shards` would not have to read a source."""
    return index.knows([source.path], _how(source, shard_size))


def _how(source: Source, shard_size: int) -> list[Any]:
    return [asdict(source) | {"path": ""}, shard_size, CUT_VERSION]


# Told how many more bytes of a source have been read.
Told = Callable[[int], None]


def _nobody(size: int) -> None:
    pass


def _looked_at(source: Source, shard_size: int, told: Told) -> dict[str, Any]:
    """What the index remembers of a source."""
    shards = [(s.key, s.piece.start, s.piece.stop, s.bytes) for s in cut(source, shard_size, told)]
    return {"columns": sources.columns(source), "shards": shards}


def cut(source: Source, shard_size: int, told: Told = _nobody) -> list[Shard]:
    """Cut one source into shards of about `shard_size` bytes and hash each.

    JSON Lines and text end a shard at a row, Parquet at a row group, Arrow at a
    record batch; what can't be cut is one shard a file. An empty file has none.
    """
    size = os.stat(source.path).st_size
    if size == 0:
        return []
    separator = _separator(source)
    if separator is not None:
        return _cut_rows(source, size, shard_size, separator, told)
    if source.format in ("parquet", "arrow"):
        found = _cut_units(source, shard_size)
    else:
        whole = Piece(source, 0, size)
        found = [Shard(sources.digest(whole), whole, size)]
    told(size)
    return found


def _cut_rows(
    source: Source, size: int, shard_size: int, separator: bytes, told: Told
) -> list[Shard]:
    found, start = [], 0
    with open(source.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
        view = memoryview(m)
        try:
            for end in _row_ends(m, size, shard_size, separator):
                key = blake3(view[start:end]).hexdigest()[:KEY_DIGITS]
                found.append(Shard(key, Piece(source, start, end), end - start))
                told(end - start)
                start = end
        finally:
            view.release()
    return found


def _separator(source: Source) -> bytes | None:
    if source.compression is None:
        if source.format == "jsonl" or (source.format == "text" and source.sample_by == "line"):
            return b"\n"
        if source.format == "text" and source.sample_by == "paragraph":
            return b"\n\n"
    return None


def _row_ends(m: mmap.mmap, size: int, shard_size: int, separator: bytes) -> Iterable[int]:
    """Where shards end. Rows in the first half of a shard are never asked, which keeps
    shards from being tiny; a row is chosen with a chance proportional to its length."""
    start = 0
    while start < size:
        end = _row_end(m, start + shard_size // 2, size, separator)
        while end < size and end - start < 4 * shard_size:
            begin, end = end, _row_end(m, end, size, separator)
            if _chosen(zlib.crc32(m[begin:end]), end - begin, shard_size):
                break
        yield end
        start = end


def _row_end(m: mmap.mmap, position: int, size: int, separator: bytes) -> int:
    found = m.find(separator, position)
    return size if found < 0 else found + len(separator)


def _chosen(hashed: int, length: int, shard_size: int) -> bool:
    """One cut in shard_size / 2 bytes on average, whatever the lengths of the rows."""
    return hashed * (shard_size // 2) < length << 32


def _cut_units(source: Source, shard_size: int) -> list[Shard]:
    """Row groups or record batches, put together like rows."""
    units = sources.units(source)
    cuts: list[Shard] = []
    start = gathered = 0
    for number, (size, digest) in enumerate(units):
        gathered += size
        chosen = _chosen(zlib.crc32(digest.encode()), size, shard_size)
        last = number == len(units) - 1
        if last or gathered >= 4 * shard_size or (gathered >= shard_size // 2 and chosen):
            piece = Piece(source, start, number + 1)
            key = sources.digest_of_units([d for _, d in units[start : number + 1]])
            cuts.append(Shard(key, piece, gathered))
            start, gathered = number + 1, 0
    return cuts


def identity(wanted: Reference, digests: Callable[[list[str]], list[str]]) -> list[Any]:
    """What a reference's bytes are: the commit, or the names and hashes of a folder's files.

    Hidden files and folders, and texts for people, decide nothing.
    """
    if wanted.hub:
        return [wanted.hub, wanted.revision]
    root = Path(wanted.path)
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    names = [file.relative_to(root) for file in files]
    chosen = [
        (str(name), str(file))
        for name, file in zip(names, files, strict=True)
        if not any(part.startswith(".") for part in name.parts) and file.suffix != ".md"
    ]
    found = digests([file for _, file in chosen])
    return [[name, digest] for (name, _), digest in zip(chosen, found, strict=True)]


def check_identity(reference: dict[str, Any], planned: list[Any], where: str) -> None:
    """Raises UserError where a reference's bytes are not those that the plan is for."""
    found = identity(Reference(**reference), lambda files: [hash_file(file) for file in files])
    if found != planned:
        raise UserError(
            f"{where}: {reference['path']} changed while it was read (or after the plan was "
            "made); run snakemake again"
        )


def file_digests(files: list[str], index: Index) -> list[str]:
    """BLAKE3 of whole files (weights, data set folders), remembered like shards."""
    about = "file digest"
    new = {file: os.stat(file).st_size for file in files if not index.knows([file], about)}
    found = []
    with Progress(sum(new.values()), "bytes", "hash files", passing=True) as shown:
        for file in files:
            found.append(index.recall([file], about, partial(hash_file, file)))
            shown.update(new.get(file, 0))
    return found
