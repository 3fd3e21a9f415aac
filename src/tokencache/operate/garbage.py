"""What nobody needs in a cache folder: leftovers of dead processes, and what nothing refers to."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .. import inventory
from ..errors import UserError
from ..files import ABANDONED_SECONDS, SUPERSEDED_SECONDS, is_left, is_still
from ..workflows import PREFIX, is_over
from .on_disk import Cache
from .removal import holder_of
from .shared import (
    Needs,
    Thing,
    cache_thing,
    folder_thing,
    keyed_folders,
    needs_of,
    token_shards,
)

BESIDE = re.compile(r"\.(?P<target>[0-9]+-[0-9a-f]{12})\.(?P<kind>checkpoints|building|parts)")


@dataclass
class Wanted:
    """What something refers to: caches by their names, with the reason; other things by key.

    runs: the folders of runs, finished or not.
    """

    caches: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    runs: set[Path] = field(default_factory=set)


def garbage(
    cache: Path, found: list[Cache], wanted: Wanted, older: float, budget: int | None
) -> list[Thing]:
    """What may be deleted, in order: what nobody needs, then caches that nothing refers to, the
    least recently used first, each followed by what only it needed.

    older: seconds without use that a thing must have to its name. budget: bytes of the cache
    folder from which on nothing more needs to go. Only this user's own things are in it.
    Raises UserError where a cache does not say what it needs.
    """
    shared = {thing.key: thing for thing in _shared(cache) if thing.kind != "leftover"}
    left = list(leftovers(cache))
    size = sum(one.bytes for one in found)
    size += sum(thing.bytes for thing in [*shared.values(), *left])
    uses, needs = Counter(wanted.keys), {}
    for one in found:
        needs[one.name] = _keys_of(one)
        uses.update(needs[one.name])
    loose = {key: thing for key, thing in shared.items()
             if thing.mine and time.time() - thing.time >= older}  # fmt: skip
    chosen: list[Thing] = []

    def take(things: Iterator[Thing] | list[Thing]) -> None:
        nonlocal size
        for thing in things:
            if budget is None or size > budget:
                chosen.append(thing)
                size -= thing.bytes

    take(thing for thing in left if thing.mine)
    take(sorted((t for key, t in loose.items() if not uses[key]), key=lambda t: t.time))
    spare = [cache_thing(one) for one in found if one.name not in wanted.caches]
    for thing in sorted(spare, key=lambda t: t.time):
        if not thing.mine or time.time() - thing.time < older:
            continue
        before = len(chosen)
        take([thing])
        if len(chosen) > before:
            uses.subtract(needs[thing.key])
            take([loose[key] for key in needs[thing.key] if key in loose and not uses[key]])
    return chosen


def _keys_of(one: Cache) -> set[str]:
    """The keys of all that a cache is made of."""
    needs: Needs | None = needs_of(one)
    if needs is None:
        raise UserError(
            f"{one.folder / inventory.CACHE_FILE} can't be read, so nobody knows what that cache "
            f"needs; delete it first: tokencache clear {one.name}"
        )
    tokenizer = {one.about["tokenizer"]["key"]} if one.about else set()
    return needs.tokens.keys() | needs.sources | tokenizer


def _shared(cache: Path) -> Iterator[Thing]:
    yield from token_shards(cache)
    yield from keyed_folders(cache, "tokenizers", "tokenizer")
    yield from keyed_folders(cache, "sources", "fetched data")


def leftovers(cache: Path) -> Iterator[Thing]:
    """What processes that are dead, or must be, left in a cache folder."""
    for path in _hidden(cache):
        with suppress(OSError):  # gone meanwhile
            if _is_leftover(path):
                yield folder_thing("leftover", str(path), path, path.lstat().st_mtime)
    for thing in token_shards(cache):
        if thing.kind == "leftover" and time.time() - thing.time > SUPERSEDED_SECONDS:
            yield thing


def unfinished(results: Path, wanted: Wanted) -> Iterator[Thing]:
    """Checkpoints of runs that are there or that nothing refers to, and nobody trains."""
    for path in results.glob("*/*/.*.checkpoints"):
        named = BESIDE.fullmatch(path.name)
        if named is None:
            continue
        run = path.with_name(named["target"])
        spare = run.exists() or run.resolve() not in wanted.runs
        if spare and holder_of(run) is None and is_still(path, SUPERSEDED_SECONDS):
            yield folder_thing("unfinished run", str(path), path, path.stat().st_mtime)


def _hidden(cache: Path) -> Iterator[Path]:
    for pattern in (".*", "tokenizers/.*", "sources/.*", "tokens/*/*/.*", "*/*/.*"):
        yield from cache.glob(pattern)


def _is_leftover(path: Path) -> bool:
    if path.suffix == ".tmp":
        return is_left(path)
    if path.name.startswith(PREFIX):
        return is_over(path)
    named = BESIDE.fullmatch(path.name)
    if named is None:
        return False
    target = path.with_name(named["target"])
    if named["kind"] == "building":
        return holder_of(target) is None and is_still(path, SUPERSEDED_SECONDS)
    there = target.exists() and named["kind"] == "parts"
    return is_still(path, SUPERSEDED_SECONDS if there else ABANDONED_SECONDS)
