"""What a cache was made of, as its cache.json tells it and its keys prove it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ...base.hashing import key_of
from ...errors import UserError
from ...plan.plan import INDEX, fetched_path
from ...sources import hub, identity, read
from ...sources.find import COLUMNAR, COMPRESSIONS, SUFFIXES
from ...sources.index import Index
from ...sources.source import Piece, Source

SAMPLED = ("line", "paragraph", "document")


@dataclass(frozen=True)
class SourceShard:
    """A piece of a source that a cache was made of.

    key: of its bytes; tokens: of its token shards, of the source and (of pairs) of the target;
    before: the bytes of the file's shards before it; bytes: its own, None if it was fetched.
    """

    path: str
    key: str
    tokens: tuple[str, ...]
    before: int
    bytes: int | None

    @property
    def fetched(self) -> str:
        """The folder that it was fetched to."""
        return os.path.dirname(self.path)


def shards(about: dict[str, Any]) -> dict[str, list[SourceShard]]:
    """The source shards of each split of a cache, in order."""
    return {split: list(_of_split(files)) for split, files in about["sources"].items()}


def _of_split(files: list[dict[str, Any]]) -> Iterator[SourceShard]:
    for file in files:
        before = 0
        for shard in file["shards"]:
            sides = tuple(shard[name] for name in ("tokens", "target_tokens") if name in shard)
            yield SourceShard(file["path"], shard["key"], sides, before, shard["bytes"])
            before += shard["bytes"] or 0


def recipes(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe of a cache's documents, or those of its sources and its targets."""
    recipe = about["recipe"]
    return [recipe["source"], recipe["target"]] if "source" in recipe else [recipe]


def is_in_order(about: dict[str, Any]) -> bool:
    """Whether the order in which cache.json tells the shards is that of the cache's rows."""
    return key_of(["dataset", about["settings"], *_keys(about)]) == about["key"]


def _keys(about: dict[str, Any]) -> list[dict[str, list[str]]]:
    found = shards(about)
    return [
        {split: [shard.tokens[side] for shard in found[split]] for split in found}
        for side in range(len(recipes(about)))
    ]


def source_of(shard: SourceShard, about: dict[str, Any]) -> tuple[Source | None, str] | None:
    """How a shard's file was read, and the shard's name in a plan; no source if it was fetched.

    cache.json tells neither, but the token shard's key does. None where no way gives that key,
    as of a cache that another version made.
    """
    tokenizer, recipe = about["tokenizer"]["key"], key_of(recipes(about)[0])

    def gives(name: str) -> bool:
        return key_of(["tokens", tokenizer, recipe, name]) == shard.tokens[0]

    if gives(shard.key):
        return None, shard.key
    compressions = (None, *dict.fromkeys(COMPRESSIONS.values()))
    for kind, compression in product(dict.fromkeys(SUFFIXES.values()), compressions):
        for sampled in SAMPLED if kind == "text" else (None,):
            name = key_of([shard.key, kind, compression, sampled])
            if gives(name):
                return Source(shard.path, kind, compression, sampled or "line"), name
    return None


class Changed(Exception):
    """A source that can't be read as it was; the message says why."""


class Sources:
    """Source files as they are now."""

    def __init__(self, shard_size: int) -> None:
        self._size = shard_size
        self._cuts: dict[Source, dict[str, Piece]] = {}

    def cut(self, source: Source, known: bool = False) -> dict[str, Piece] | None:
        """The pieces that a file is cut into now, by their keys; None where it can't be read.

        known: only if the index knows them, so that nothing is read.
        """
        if source not in self._cuts:
            with Index(INDEX) as index:
                if known and not identity.is_known(source, self._size, index):
                    return None
                try:
                    [found], _ = identity.shards([source], self._size, index, source.path)
                except (UserError, OSError):
                    return None
            self._cuts[source] = {shard.key: shard.piece for shard in found}
        return self._cuts[source]

    def piece(self, shard: SourceShard, source: Source | None) -> tuple[Piece, str]:
        """Where a shard is in its file now, and the digest of its bytes. Raises Changed."""
        if not os.path.exists(shard.path):
            raise Changed(f"{shard.path} is gone")
        with suppress(UserError, KeyError, ValueError):
            if source is None:
                found = hub.piece(shard.fetched, Source(shard.path, "arrow", None, "line"))
            else:
                found = _where_it_was(shard, source), shard.key
            if read.digest(found[0]) == found[1]:
                return found
        cut = self.cut(source) if source else None
        if cut and shard.key in cut:
            return cut[shard.key], shard.key
        raise Changed(f"{shard.path} was changed since")


def _where_it_was(shard: SourceShard, source: Source) -> Piece:
    """Raises ValueError where a file of row groups or record batches has others now."""
    if source.format not in COLUMNAR:
        return Piece(source, shard.before, shard.before + shard.bytes)
    edges = [0]
    for size, _ in read.units(source):
        edges.append(edges[-1] + size)
    return Piece(source, edges.index(shard.before), edges.index(shard.before + shard.bytes))


def fetched_folders(about: dict[str, Any], cache: str) -> list[str]:
    """The folders of fetched data sets that a cache was made of."""
    root = os.path.dirname(fetched_path(cache, "-"))
    paths = {Path(file["path"]) for files in about["sources"].values() for file in files}
    return sorted({str(path.parent) for path in paths if str(path.parent.parent) == root})
