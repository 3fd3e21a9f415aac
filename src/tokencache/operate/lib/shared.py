"""What caches share: token shards, tokenizers and fetched data, and which cache needs which."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ...base.publish import size_of
from ...base.records import CACHE_FILE, KEY
from ...errors import UserError
from ...plan import inventory
from .on_disk import Cache


@dataclass(frozen=True)
class Thing:
    """Something in the cache folder that is deleted as a whole.

    kind: for people. key: what those who need it call it by. paths: in the order in which they
    are removed. time: when it was last used, made or written to, in seconds since 1970. mine:
    whether this user made all of it.
    """

    kind: str
    key: str
    paths: tuple[Path, ...]
    bytes: int
    time: float
    mine: bool


@dataclass(frozen=True)
class Needs:
    """What a cache is made of: the keys of tokenizers, of fetched data, and of token shards,
    each with the bytes of its source (0 where they are not known)."""

    tokens: dict[str, int]
    sources: frozenset[str]


NOTHING = Needs({}, frozenset())


def needs_of(cache: Cache) -> Needs | None:
    """None where it can't be told, since its cache.json can't be read.

    Without one it is gone, or was never a cache.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if cache.about:
            return _needs(inventory.sources_text(cache.folder))
    try:
        os.lstat(cache.folder / CACHE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    except OSError:
        pass
    return None


@lru_cache(maxsize=64)
def _needs(text: bytes) -> Needs:
    """Read once for caches of the same shards, which stand beside each other in a list."""
    tokens: dict[str, int] = {}
    sources = set()
    for files in json.loads(text).values():
        for file in files:
            above = Path(file["path"]).parent
            if above.parent.name == "sources" and KEY.fullmatch(above.name):
                sources.add(above.name)
            for shard in file["shards"]:
                size = shard["bytes"] or 0
                for key in (shard["tokens"], shard.get("target_tokens")):
                    if key is not None:
                        tokens[str(key)] = int(size)
    return Needs(tokens, frozenset(sources))


def token_shards(cache: str | Path) -> Iterator[Thing]:
    """Each token shard with the file of its counts; also such a file that was left alone."""
    for tokenizer in _entries(Path(cache, "tokens")):
        for part in _entries(tokenizer):
            yield from _shards_in(part)


def _shards_in(part: os.DirEntry) -> Iterator[Thing]:
    files: dict[str, list[os.DirEntry]] = {}
    for entry in _entries(part):
        key, _, kind = entry.name.partition(".")
        if KEY.fullmatch(key) and kind in ("arrow", "json"):
            files.setdefault(key, []).append(entry)
    for key, found in files.items():
        with suppress(OSError):  # gone meanwhile
            found.sort(key=lambda entry: entry.name)  # .arrow, without which nothing is there
            about = [entry.stat() for entry in found]
            kind = "token shard" if found[0].name.endswith(".arrow") else "leftover"
            yield Thing(kind, key, tuple(Path(entry) for entry in found),
                        sum(a.st_size for a in about), max(a.st_mtime for a in about),
                        {a.st_uid for a in about} == {os.geteuid()})  # fmt: skip


def keyed_folders(cache: str | Path, name: str, kind: str) -> Iterator[Thing]:
    """The folders of cache/tokenizers or cache/sources."""
    for entry in _entries(Path(cache, name)):
        if entry.is_dir() and KEY.fullmatch(entry.name):
            with suppress(OSError):
                path = Path(entry)
                yield folder_thing(kind, entry.name, path, entry.stat().st_mtime)


def folder_thing(kind: str, key: str, path: Path, time: float) -> Thing:
    return Thing(kind, key, (path,), size_of(path), time, inventory.is_mine(path))


def cache_thing(one: Cache) -> Thing:
    """`bytes` are those of the cache alone: its token shards are things of their own."""
    used = max(one.made, one.used or 0.0)
    return Thing("cache", one.name, (one.folder,), one.bytes, used, inventory.is_mine(one.folder))


def keys_of(one: Cache) -> Iterator[str]:
    """The keys of all that a cache is made of. Raises UserError where it does not say."""
    needs = needs_of(one)
    if needs is None:
        raise UserError(
            f"{one.folder / CACHE_FILE} can't be read, so nobody knows which token "
            f"shards that cache needs; delete it first: tokencache clear {one.name}"
        )
    yield from needs.tokens
    yield from needs.sources
    if one.about:
        yield one.about["tokenizer"]["key"]


def _entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """What is in a folder, by name; nothing where that is no folder, gone or closed."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
