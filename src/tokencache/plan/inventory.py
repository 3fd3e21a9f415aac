"""What is there in the cache and results folders, whatever config made it."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..base.hashing import key_of
from ..base.json_files import read_json
from ..base.marks import MARKS
from ..base.records import CACHE_FILE, KEY, RUN_FILE, SHARED, TARGET
from ..errors import UserError

BEFORE_SOURCES, AFTER_SOURCES = b'\n "sources": ', b'\n "splits": '

# What cache.json holds without its sources: a type, or of a mapping the values by key. Earlier
# versions wrote fewer of the keys; those of a present cache are all NEEDED.
ANY = "*"
SHAPE = {
    "key": str,
    "rows_key": str,
    "model": str,
    "dataset": str,
    "documents": {ANY: {"documents": int}},
    "splits": {ANY: {"rows": int, "tokens": int}},
    "files": {ANY: {"bytes": int}},
    "settings": {"max_length": int},
    "tokenizer": {"key": str},
    "recipe": {},
    "versions": {"tokencache": str},
}
NEEDED = frozenset({"key", "documents", "splits", "files", "settings", "tokenizer", "versions"})

# Of one name, these many are read: what a cache was made of can be megabytes.
NEWEST = 10


def brief(cache: str | Path, needed: frozenset[str] = frozenset()) -> dict[str, Any]:
    """cache.json without `sources`, which lists each shard and can be megabytes.

    Raises OSError and ValueError where the file can't be read, holds what no cache.json does,
    or lacks a key that is `needed`.
    """
    about = json.loads(_parted(cache)[0])
    if not isinstance(about, dict) or not about.keys() >= needed:
        raise ValueError(f"{cache}: keys are missing in its {CACHE_FILE}")
    for key in SHAPE.keys() & about.keys():
        if not _has_shape(about[key], SHAPE[key]):
            raise ValueError(f"{cache}: {key} is damaged in its {CACHE_FILE}")
    about.pop("sources", None)
    return about


def _has_shape(value: Any, shape: type | dict[str, Any]) -> bool:
    if isinstance(shape, type):
        return isinstance(value, shape)
    if not isinstance(value, dict):
        return False
    if ANY in shape:
        return all(_has_shape(inside, shape[ANY]) for inside in value.values())
    return all(key in value and _has_shape(value[key], shape[key]) for key in shape)


def sources_text(cache: str | Path) -> bytes:
    """Only `sources` of cache.json, as JSON: caches of the same shards have the same text.

    Raises OSError, and ValueError where it can't be found.
    """
    if text := _parted(cache)[1]:
        return text
    raise ValueError(f"{cache}: no sources are in its {CACHE_FILE}")


def _parted(cache: str | Path) -> tuple[bytes, bytes]:
    """The text of cache.json without `sources`, and of these alone, if they can be told apart.

    That goes by how `write_json` lays it down: what follows a line's end and one space is a
    key of the top level, and nothing else is.
    """
    with (
        open(Path(cache, CACHE_FILE), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        start, stop = text.find(BEFORE_SOURCES), text.rfind(AFTER_SOURCES)
        if not 0 <= start < stop:
            return text[:], b""
        return text[:start] + text[stop:], text[start + len(BEFORE_SOURCES) : stop].rstrip(b",\n")


def rows_key(about: dict[str, Any]) -> str:
    """Of all that cache.json says of a cache: what a run that used it calls it by.

    It is the same for both formats, and the key of a dataset. Where an earlier version made the
    cache, it follows from what the cache is made of.
    """
    if "rows_key" in about:
        return about["rows_key"]
    settings = dict(about["settings"])
    if settings.pop("format", "dataset") == "dataset":
        return about["key"]
    shards = {
        split: [shard for file in files for shard in file["shards"]]
        for split, files in about["sources"].items()
    }
    sides = ("tokens", "target_tokens") if "source" in about["recipe"] else ("tokens",)
    tokens = [
        {split: [shard[side] for shard in found] for split, found in shards.items()}
        for side in sides
    ]
    return key_of(["dataset", settings, *tokens])


def cache_folders(cache: str | Path) -> Iterator[Path]:
    """The folder of each cache, of every model and data set, in order."""
    for model in _folders(Path(cache)):
        if model.name not in SHARED:
            # A results folder looks the same.
            yield from (f for f in _targets(model) if not os.path.exists(f / RUN_FILE))


def check_open(cache: str | Path) -> None:
    """Raises UserError where a folder with caches can't be looked into: what they need is not
    known then."""
    for model in [Path(cache), *_folders(Path(cache))]:
        if model.name in SHARED:
            continue
        for folder in [model, *_folders(model)]:
            try:
                os.scandir(folder).close()
            except FileNotFoundError:  # gone meanwhile
                continue
            except OSError as error:
                raise UserError(
                    f"{folder} can't be looked into ({error.strerror}), so nobody knows what the "
                    "caches in it need"
                ) from None


def run_folders(results: str | Path) -> Iterator[Path]:
    """The folder of each finished run, in order."""
    for model in _folders(Path(results)):
        yield from _targets(model)


def _targets(model: Path) -> Iterator[Path]:
    for dataset in _folders(model):
        found = [folder for folder in _folders(dataset) if TARGET.fullmatch(folder.name)]
        yield from sorted(found, key=lambda folder: int(folder.name.partition("-")[0]))


def caches_of(cache: str, model: str, dataset: str, max_length: str) -> list[dict[str, Any]]:
    """cache.json of the newest caches of that name, the newest first; max_length "*": any."""
    needed = {"sources", "tokenizer", "recipe", "settings"}
    return _read(Path(cache, model, dataset), f"{max_length}-*/{CACHE_FILE}", needed)


def runs_of(results: str, model: str, dataset: str, max_length: str) -> list[dict[str, Any]]:
    """run.json of the newest runs of that name, the newest first; max_length "*": any."""
    return _read(Path(results, model, dataset), f"{max_length}-*/{RUN_FILE}", {"made_of"})


def _read(folder: Path, pattern: str, needed: set[str]) -> list[dict[str, Any]]:
    written = []
    for file in folder.glob(pattern):
        with suppress(OSError):  # gone meanwhile
            written.append((file.stat().st_mtime_ns, file))
    found = []
    for _, file in sorted(written, reverse=True):
        with suppress(OSError, ValueError):  # gone or damaged: it explains nothing
            about = read_json(file)
            if isinstance(about, dict) and needed <= about.keys():
                found.append(about | {"path": str(file.parent)})
        if len(found) == NEWEST:
            break
    return found


def shared(cache: str | Path, kind: str) -> list[Path]:
    """The folders of a kind of SHARED: a tokenizer's, a fetched data set's or model's."""
    return [folder for folder in _folders(Path(cache, kind)) if KEY.fullmatch(folder.name)]


def token_shards(cache: str | Path) -> Iterator[Path]:
    """All token shards that are there."""
    for tokenizer in shared(cache, "tokens"):
        for part in _folders(tokenizer):
            yield from (file for file in entries(part) if file.suffix == ".arrow")


def is_mine(folder: Path) -> bool:
    """Whether this user made a folder and all that is in it, as far as one can see.

    Anyone who uses a cache leaves marks in it.
    """
    try:
        all_of_it = [folder, *(path for path in folder.rglob("*") if path.name not in MARKS)]
        return all(path.lstat().st_uid == os.geteuid() for path in all_of_it)
    except OSError:  # somebody writes there just now, or closed it
        return False


def _folders(root: Path) -> list[Path]:
    # os.path, for pathlib's own raises where one may not look.
    return [folder for folder in entries(root) if os.path.isdir(folder)]


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where that is gone or closed to this user."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
