"""What is known of files, which is found out once: their shards, columns and digests."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from ..base.hashing import hash_file
from ..base.progress import Progress
from ..base.publish import check_name
from ..errors import UserError
from .cuts import CUT_VERSION, Shard, Told, cut, look, nobody
from .index import Index
from .source import Piece, Source

__all__ = ["Shard", "cut", "file_digests", "is_known", "shards"]


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
        told = shown.update if new else nobody
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


def _looked_at(source: Source, shard_size: int, told: Told) -> dict[str, Any]:
    """What the index remembers of a source."""
    found, columns = look(source, shard_size, told)
    return {
        "columns": columns,
        "shards": [(s.key, s.piece.start, s.piece.stop, s.bytes) for s in found],
    }


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
