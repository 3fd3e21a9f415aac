"""What nobody needs in a cache folder: leftovers of dead processes, and what nothing refers to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...base.publish import ABANDONED_SECONDS, SUPERSEDED_SECONDS, is_left, is_still, matches
from ...base.records import QUARANTINE
from ...plan import ours
from ...workflow.leftovers import is_spare
from ...workflow.running import ended
from .on_disk import Cache
from .removal import why_not_ours
from .shared import Thing, cache_thing, folder_thing, keyed_folders, keys_of, token_shards


@dataclass
class Wanted:
    """What something refers to: caches by their names, with the reason; other things by key.

    runs: the folders of runs, finished or not.
    """

    caches: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    runs: set[Path] = field(default_factory=set)


@dataclass
class Garbage:
    """chosen: what may be deleted, in order. strange: what would be, but that nothing proves that
    the workflow made it, by path with the reason."""

    chosen: list[Thing] = field(default_factory=list)
    strange: dict[str, str] = field(default_factory=dict)

    def add(self, thing: Thing) -> bool:
        if why := why_not_ours(thing):
            self.strange[str(thing.paths[0])] = why
        else:
            self.chosen.append(thing)
        return not why


def garbage(
    cache: Path, found: list[Cache], wanted: Wanted, older: float, budget: int | None
) -> Garbage:
    """What may be deleted, in order: what nobody needs, then caches that nothing refers to, the
    least recently used first, each followed by what only it needed.

    older: seconds without use that a thing must have to its name. budget: bytes of the cache
    folder from which on nothing more needs to go. Only this user's own things are in it.
    Raises UserError where a cache does not say what it needs.
    """
    left = list(leftovers(cache))
    shared = {thing.key: thing for thing in _shared(cache) if thing.kind != "leftover"}
    size = sum(item.bytes for item in [*found, *left, *shared.values()])
    uses = Counter(wanted.keys)
    for one in found:
        uses.update(keys_of(one))
    old = {key: thing for key, thing in shared.items() if thing.mine and _is_old(thing, older)}
    choice = _Choice(size, budget)
    choice.take(thing for thing in left if thing.mine)
    choice.take(_by_time(thing for key, thing in old.items() if not uses[key]))
    by_name = {one.name: one for one in found if one.name not in wanted.caches}
    for thing in _by_time(map(cache_thing, by_name.values())):
        if thing.mine and _is_old(thing, older) and choice.take([thing]):
            keys = list(keys_of(by_name[thing.key]))
            uses.subtract(keys)
            choice.take(old[key] for key in keys if key in old and not uses[key])
    return choice.garbage


class _Choice:
    """Things to delete, until a folder of `size` bytes has no more than `budget`, if any."""

    def __init__(self, size: int, budget: int | None) -> None:
        self._size, self._budget = size, budget
        self.garbage = Garbage()

    def take(self, things: Iterable[Thing]) -> bool:
        """Whether any of them had to be taken."""
        before = len(self.garbage.chosen)
        for thing in things:
            full = self._budget is None or self._size > self._budget
            if full and self.garbage.add(thing):
                self._size -= thing.bytes
        return len(self.garbage.chosen) > before


def _by_time(things: Iterable[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: thing.time)


def _is_old(thing: Thing, seconds: float) -> bool:
    return time.time() - thing.time >= seconds


def _shared(cache: Path) -> Iterator[Thing]:
    yield from token_shards(cache)
    yield from keyed_folders(cache, "tokenizers", "tokenizer")
    yield from keyed_folders(cache, "sources", "fetched data")


def leftovers(cache: Path) -> Iterator[Thing]:
    """What processes that are dead, or must be, left in a cache folder."""
    found = matches(cache, ".*", f"{QUARANTINE}/.*", "tokenizers/.*", "sources/.*",
                    "tokens/*/*/.*", "*/*/.*")  # fmt: skip
    for path in [*ended(cache), *filter(_is_leftover, found)]:
        with suppress(OSError):  # gone meanwhile
            yield folder_thing("leftover", str(path), path, path.lstat().st_mtime)
    for thing in token_shards(cache):
        if thing.kind == "leftover" and time.time() - thing.time > SUPERSEDED_SECONDS:
            yield thing


def left_of_runs(results: Path) -> Iterator[Thing]:
    """What killed trainings left of runs that are there, or that nobody will go on with."""
    for path in matches(results, "*/*/.*"):
        named = ours.BESIDE.fullmatch(path.name)
        if named is None:
            left = is_left(path)
        elif named["kind"] == "building" or path.with_name(named["target"]).exists():
            left = is_spare(path)
        else:
            left = False
        if left:
            with suppress(OSError):  # gone meanwhile
                yield folder_thing("leftover", str(path), path, path.lstat().st_mtime)


def unfinished(results: Path, wanted: Wanted) -> Iterator[Thing]:
    """Checkpoints of missing runs that nothing refers to and nobody trains."""
    for path in matches(results, "*/*/.*.checkpoints"):
        named = ours.BESIDE.fullmatch(path.name)
        if named is None:
            continue
        run = path.with_name(named["target"])
        if not run.exists() and run.resolve() not in wanted.runs and is_spare(path):
            yield folder_thing("unfinished run", str(path), path, path.stat().st_mtime)


def _is_leftover(path: Path) -> bool:
    if path.suffix == ".tmp":
        return is_left(path)
    named = ours.BESIDE.fullmatch(path.name)
    if named is None:
        return False
    target = path.with_name(named["target"])
    if named["kind"] == "building":
        return is_spare(path)
    there = target.exists() and named["kind"] == "parts"
    return is_still(path, SUPERSEDED_SECONDS if there else ABANDONED_SECONDS)
