"""Where sources are cut into shards: where their content says. Nothing is read twice.

A cut is a property of the bytes around it, never of an offset: a row ends a shard
when its own hash says so (content-defined chunking, as in Muthitacharoen et al.,
"A Low-Bandwidth Network File System", 2001). So an insertion changes the shard it
falls into and moves no later cut.

Files are read, not mapped into memory: one that is cut short meanwhile then ends early,
where a mapped one would end the process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from blake3 import blake3

from ..base.hashing import KEY_DIGITS
from . import read
from .json_columns import Columns
from .source import BLOCK_BYTES, BOM, LONGEST_ROW, Piece, Source, too_long

# Raise when the same bytes are cut at other places than before, or have other keys or columns.
CUT_VERSION = 2


@dataclass(frozen=True)
class Shard:
    """One piece of a source and the key of its bytes."""

    key: str
    piece: Piece
    bytes: int


# Told how many more bytes of a source have been read.
Told = Callable[[int], None]


def nobody(size: int) -> None:
    pass


# Given each block of a file in turn.
Seen = Callable[[bytes], None]


def look(source: Source, shard_size: int, told: Told = nobody) -> tuple[list[Shard], list[str]]:
    """The shards of a source and its columns, for which a file of rows is read once.

    Raises UserError where a row that is looked at closely is broken.
    """
    size = os.stat(source.path).st_size
    if size == 0:
        return [], read.columns(source)
    if _separator(source) is None and source.format not in read.COLUMNAR:
        whole = Piece(source, 0, size)
        key, columns = read.digest_and_columns(whole, told)
        return [Shard(key, whole, size)], columns
    if source.format == "jsonl":
        keys = Columns(source)
        return cut(source, shard_size, told, keys.feed), keys.found()
    return cut(source, shard_size, told), read.columns(source)


def cut(
    source: Source, shard_size: int, told: Told = nobody, seen: Seen | None = None
) -> list[Shard]:
    """Cut one source into shards of about `shard_size` bytes and hash each.

    JSON Lines and text end a shard at a row, Parquet at a row group, Arrow at a
    record batch; what can't be cut is one shard a file. An empty file has none.
    """
    with read.named_errors(source):
        size = os.stat(source.path).st_size
        if size == 0:
            return []
        separator = _separator(source)
        if separator is not None:
            with open(source.path, "rb", buffering=0) as file:
                window = _Window(source, file, size, separator, told, seen)
                return _cut_rows(source, size, shard_size, window)
        if source.format in read.COLUMNAR:
            found = _cut_units(source, shard_size)
        else:
            whole = Piece(source, 0, size)
            found = [Shard(read.digest(whole), whole, size)]
        told(size)
        return found


def _separator(source: Source) -> bytes | None:
    if source.compression is None:
        if source.format == "jsonl" or (source.format == "text" and source.sample_by == "line"):
            return b"\n"
        if source.format == "text" and source.sample_by == "paragraph":
            return b"\n\n"
    return None


def _cut_rows(source: Source, size: int, shard_size: int, window: _Window) -> list[Shard]:
    """Rows in the first half of a shard are never asked whether they end it, which keeps
    shards from being tiny; a row is chosen with a chance proportional to its length."""
    found, start = [], 0
    while start < size:
        window.begin(start)
        end = window.row_end(start + shard_size // 2)
        end = window.chosen_end(end, start + 4 * shard_size, shard_size)
        found.append(Shard(window.digest(end), Piece(source, start, end), end - start))
        start = end
    return found


class _Window:
    """A file that is read once from start to end; its last bytes are kept.

    Places are asked for in rising order; what lies before the last row that was asked for
    is hashed and forgotten.
    """

    def __init__(
        self,
        source: Source,
        file: BinaryIO,
        size: int,
        separator: bytes,
        told: Told,
        seen: Seen | None,
    ) -> None:
        self._source, self._file, self._size, self._separator = source, file, size, separator
        self._told, self._seen = told, seen
        self._hasher = blake3()
        self._data = b""  # bytes [_from, _to) of the file
        self._from = self._to = self._hashed = 0

    def begin(self, start: int) -> None:
        """A shard begins here."""
        while self._to < min(start + len(BOM), self._size):
            self._read(start)
        head = self._data[start - self._from : start - self._from + len(BOM)]
        self._hasher, self._hashed = read.hasher(start, head), start

    def row_end(self, position: int) -> int:
        """Where the row ends that this place is in."""
        looked = position
        while True:
            found = self._data.find(self._separator, max(looked - self._from, 0))
            if found >= 0:
                return self._from + found + len(self._separator)
            if self._to == self._size:
                return self._size
            looked = max(looked, self._to - len(self._separator) + 1)
            self._read(position)

    def chosen_end(self, end: int, most: int, shard_size: int) -> int:
        """The first end of a row after `end` that the row's content chooses, or that reaches
        `most`; `end` itself where it does."""
        separator, length = self._separator, len(self._separator)
        while end < min(most, self._size):
            data, start = self._data, end - self._from
            while (stop := data.find(separator, start)) >= 0:
                stop += length
                row = data[start:stop]
                if _chosen(zlib.crc32(row), stop - start, shard_size) or self._from + stop >= most:
                    return self._from + stop
                start = stop
            if self._to == self._size:
                return self._size
            end = self._from + start
            self._read(end)
        return end

    def digest(self, end: int) -> str:
        """The key of the shard that ends here."""
        self._hash(end)
        last = self._data[max(end - self._from - 1, 0) : max(end - self._from, 0)]
        self._hasher.update(read.ending(self._source, last))
        return self._hasher.hexdigest()[:KEY_DIGITS]

    def _hash(self, stop: int) -> None:
        stop = min(stop, self._to)
        if stop > self._hashed:
            held = memoryview(self._data)[self._hashed - self._from : stop - self._from]
            self._hasher.update(held)
            self._hashed = stop

    def _read(self, keep: int) -> None:
        """Read on, and hold what lies from `keep` on."""
        self._hash(keep)
        kept = self._data[max(keep - self._from, 0) :]
        if len(kept) > LONGEST_ROW:
            raise too_long(Piece(self._source, keep, keep), 0)
        # As much again as there is, so that a long row isn't moved for each of its blocks.
        block = self._file.read(min(max(BLOCK_BYTES, len(kept)), self._size - self._to))
        if not block:
            raise read.changed(self._source)
        if self._seen:
            self._seen(block)
        self._data = kept + block
        self._to += len(block)
        self._from = self._to - len(self._data)
        self._told(len(block))


def _chosen(hashed: int, length: int, shard_size: int) -> bool:
    """One cut in shard_size / 2 bytes on average, whatever the lengths of the rows."""
    return hashed * (shard_size // 2) < length << 32


def _cut_units(source: Source, shard_size: int) -> list[Shard]:
    """Row groups or record batches, put together like rows."""
    units = read.units(source)
    cuts: list[Shard] = []
    start = gathered = 0
    for number, (size, digest) in enumerate(units):
        gathered += size
        chosen = _chosen(zlib.crc32(digest.encode()), size, shard_size)
        last = number == len(units) - 1
        if last or gathered >= 4 * shard_size or (gathered >= shard_size // 2 and chosen):
            piece = Piece(source, start, number + 1)
            key = read.digest_of_units([d for _, d in units[start : number + 1]])
            cuts.append(Shard(key, piece, gathered))
            start, gathered = number + 1, 0
    return cuts
