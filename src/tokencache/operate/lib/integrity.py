"""Sizes and checksums of what is in the cache and results folders, one thing after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base import manifest
from ...base.hashing import key_of
from ...base.json_files import read_json
from ...base.manifest import MANIFEST, beside
from ...base.records import CACHE_FILE
from ...caches.view import VIEW_FILE, View, sides_of
from ...errors import UserError
from ...plan import inventory
from ...sources import hub
from ...sources.read import digest_of_units, units
from ...sources.source import Source
from ...tokenizer.given import FACTS_FILE

RECHECK_SECONDS = 0.5

# What is told of the bytes of each file that was read.
Read = Callable[[int], Any]
State = tuple[int, int] | None


class Unchecked(Exception):
    """Nothing is said of what a thing should be; the message says why."""


@dataclass(frozen=True)
class Thing:
    """Something that is or should be in a folder.

    kind: cache, token shard, tokenizer, source, model or run. files: what it is in; bytes: of
    them, as far as a look at the folder tells.
    """

    kind: str
    path: Path
    bytes: int

    def damage(self, read: Read) -> list[str]:
        """What is wrong with it. Raises Unchecked, and OSError where it can't be read."""
        return _CHECKS[self.kind](self.path, read)

    def files(self) -> list[Path]:
        """The paths that it is at."""
        return [self.path, beside(self.path)] if self.kind == "token shard" else [self.path]

    def state(self) -> State:
        """What is another one after it was made anew."""
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_ino, about.st_mtime_ns


def thing(kind: str, path: Path) -> Thing:
    try:
        size = sum(file.stat().st_size for file in _files(path))
    except OSError:  # it goes away just now
        size = 0
    return Thing(kind, path, size)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def everything(cache: str, results: str) -> Iterator[Thing]:
    """All that is in the two folders."""
    for folder in inventory.shared(cache, "tokenizers"):
        yield thing("tokenizer", folder)
    for folder in inventory.shared(cache, "sources"):
        yield thing("source" if os.path.exists(folder / hub.FETCHED) else "model", folder)
    for path in inventory.token_shards(cache):
        yield thing("token shard", path)
    for folder in inventory.cache_folders(cache):
        yield thing("cache", folder)
    for folder in inventory.run_folders(results):
        yield thing("run", folder)


def confirmed(one: Thing, read: Read) -> list[str]:
    """What is wrong with a thing that is still there: looked at twice, for others may be at it.

    Of a view nothing is said of what is wrong with its token shards: see `of_view`. Raises
    Unchecked.
    """
    found = _tried(one, read)
    if found and one.path.exists():
        time.sleep(RECHECK_SECONDS)  # of what is deleted just now the rest goes meanwhile
        found = _tried(one, lambda size: None)
    return found if one.path.exists() else []


def _tried(one: Thing, read: Read) -> list[str]:
    try:
        return one.damage(read)
    except PermissionError as error:
        raise Unchecked(f"you may not read {error.filename}") from None
    except OSError as error:
        return [f"{error.filename or one.path} can't be read: {error.strerror or error}"]


def _cache(folder: Path, read: Read) -> list[str]:
    try:
        about = read_json(folder / CACHE_FILE)
        rest = {name: value for name, value in about.items() if name != "checksum"}
        if about.get("checksum", key_of(rest)) != key_of(rest):
            return [f"{CACHE_FILE} says something else than was written (its checksum differs)"]
        if not folder.name.endswith(f"-{about['key'][:12]}"):
            return [f"{CACHE_FILE} is of another cache, {about['key']}"]
        return manifest.damage(folder, about["files"], read)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        if (folder / CACHE_FILE).exists():
            return [f"{CACHE_FILE} can't be read"]
        return [f"{CACHE_FILE} is missing"]


def of_view(folder: Path, damaged: set[str]) -> tuple[list[str], list[Path]]:
    """Of an undamaged cache that is a view: what is wrong, and token shards that are missing.

    damaged: the real paths of token shards that are. They are not opened, as the library that
    reads them may end the process.
    """
    wrong, missing = [], []
    if not os.path.exists(folder / VIEW_FILE):  # pathlib's own raises where one may not look
        return wrong, missing
    for split in read_json(folder / VIEW_FILE)["splits"]:
        for name in sides_of(folder, split):
            for path, check in View(folder, name).shards():
                if not os.path.exists(path):
                    missing.append(Path(path))
                elif os.path.realpath(path) not in damaged:
                    try:
                        check()
                    except UserError as error:
                        wrong.append(str(error))
    return wrong, missing


def _token_shard(path: Path, read: Read) -> list[str]:
    try:
        made = read_json(beside(path))
        size, digest = made["bytes"], made["checksum"]
        if made["key"] != path.stem:
            return [f"{beside(path).name} is of another token shard, {made['key']}"]
    except FileNotFoundError:
        return [f"{beside(path).name}, which has its checksum, is missing"]
    except (ValueError, KeyError, TypeError):
        return [f"{beside(path).name}, which has its checksum, can't be read"]
    about = {path.name: {"bytes": size, "blake3": digest}}
    return manifest.damage(path.parent, about, read) or _counts(path, made)


def _counts(path: Path, made: dict[str, Any]) -> list[str]:
    from ...tokens.read import Documents

    documents = Documents([str(path)])
    found = {"documents": len(documents), "tokens": int(documents.length.sum())}
    return [
        f"{beside(path).name} says {made.get(name)} {name}, but it has {count}"
        for name, count in found.items()
        if made.get(name) != count
    ]


def _tokenizer(folder: Path, read: Read) -> list[str]:
    if (folder / MANIFEST).exists():
        return _listed(folder, read)
    try:
        facts = read_json(folder / FACTS_FILE)
        key, ids = facts["key"], facts["parts"].get("probe ids")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{FACTS_FILE} is missing or can't be read"]
    if key != folder.name:
        return [f"{FACTS_FILE} is of another tokenizer, {key}"]
    if ids is None:
        raise Unchecked("an earlier version made it, without checksums")
    return _ids(folder, ids)


def _ids(folder: Path, wanted: str) -> list[str]:
    """Of a tokenizer that was made without checksums: whether it gives the ids of its key."""
    from ...tokenizer.given import opened
    from ...tokenizer.probe import probe

    try:
        backend = opened(folder)
        found = [
            [e.ids for e in backend.encode_batch(probe(backend), add_special_tokens=special)]
            for special in (True, False)
        ]
    except Exception as error:  # whatever the library makes of a damaged file
        return [f"it can't be loaded: {error}"]
    return [] if key_of(found) == wanted else ["it gives other ids than its key says"]


def _listed(folder: Path, read: Read) -> list[str]:
    try:
        return manifest.damage(folder, read_json(folder / MANIFEST), read)
    except FileNotFoundError:
        raise Unchecked("an earlier version made it, without checksums") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} can't be read"]


def _source(folder: Path, read: Read) -> list[str]:
    """A fetched data set."""
    found = []
    try:
        for name, made in read_json(folder / hub.FETCHED).items():
            file = folder / name
            if "blake3" in made:
                found += manifest.damage(folder, {name: made}, read)
                continue
            if not file.exists():
                found.append(f"{name} is missing")
                continue
            try:  # an earlier version fetched it, and hashed record batches alone
                hashed = [digest for _, digest in units(Source(str(file), "arrow", None, "line"))]
            except UserError as error:
                found.append(str(error))
                continue
            if (len(hashed), digest_of_units(hashed)) != (made["batches"], made["digest"]):
                found.append(f"{name} has other bytes than were fetched (its checksum differs)")
            read(file.stat().st_size)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{hub.FETCHED} can't be read"]
    return found


def written(one: Thing) -> Any:
    """What was said of a thing's bytes when it was made, without reading them; None if lost."""
    try:
        match one.kind:
            case "cache":
                return read_json(one.path / CACHE_FILE)["files"]
            case "token shard":
                return read_json(beside(one.path))["checksum"]
            case "source":
                return read_json(one.path / hub.FETCHED)
            case _:
                return read_json(one.path / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError):
        return None


_CHECKS: dict[str, Callable[[Path, Read], list[str]]] = {
    "cache": _cache,
    "token shard": _token_shard,
    "tokenizer": _tokenizer,
    "source": _source,
    "model": _listed,
    "run": _listed,
}
