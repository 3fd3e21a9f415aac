"""Sources cut into shards where their content says, and hashed; nothing is read twice.

A cut is a property of the bytes around it, never of an offset: a row ends a shard
when its own hash says so (content-defined chunking, as in Muthitacharoen et al.,
"A Low-Bandwidth Network File System", 2001). So an insertion changes the shard it
falls into and moves no later cut.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from blake3 import blake3

from . import sources
from .errors import UserError
from .files import KEY_DIGITS, check_name, hash_file
from .index import Index
from .progress import Progress
from .sources import Piece, Source

# Raise when the same bytes are cut at other places than before.
CUT_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One piece of a source and the key of its bytes."""

    key: str
    piece: Piece
    bytes: int


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


def check_same(found: list[Any], planned: list[Any], path: str, where: str) -> None:
    if found != planned:
        raise UserError(
            f"{where}: {path} changed while it was read (or after the plan was "
            "made); run snakemake again"
        )


def file_digests(files: list[str], index: Index) -> list[str]:
    """BLAKE3 of whole files (weights, data set folders), remembered like shards."""
    for file in files:
        check_name(file)
    about = "file digest"
    new = {file: os.stat(file).st_size for file in files if not index.knows([file], about)}
    found = []
    with Progress(sum(new.values()), "bytes", "hash files", passing=True) as shown:
        for file in files:
            found.append(index.recall([file], about, partial(hash_file, file)))
            shown.update(new.get(file, 0))
    return found
