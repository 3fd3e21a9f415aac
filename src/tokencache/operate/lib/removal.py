"""Deleting things of the cache folder: what may not go, and the rest without failing halfway."""

from __future__ import annotations

import pwd
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ...base.publish import remove
from ...base.records import KEY
from ...base.tables import amount, count
from ...errors import UserError
from ...plan import ours
from ...workflow.leftovers import holder_of
from ...workflow.running import Running
from .on_disk import Cache
from .shared import Thing

_PROOFS: dict[str, Callable[[Path], str | None]] = {
    "cache": ours.why_not_a_cache,
    "run": ours.why_not_a_run,
    "unfinished run": ours.why_not_beside,
    "token shard": ours.why_not_a_shard,
    "tokenizer": ours.why_not_a_tokenizer,
    "fetched data": ours.why_not_fetched,
    "quarantine": ours.why_not_put_away,
}


def why_not_ours(thing: Thing) -> str | None:
    """Why nothing proves that the workflow made a thing; None where its own records do."""
    path = thing.paths[0]
    if proof := _PROOFS.get(thing.kind):
        return proof(path)
    if ours.BESIDE.fullmatch(path.name):
        return ours.why_not_beside(path)
    # Other leftovers were looked at when they were found to be such.
    return ours.why_not_a_shard(path) if KEY.fullmatch(path.stem) else None


def why_it_stays(
    one: Cache, thing: Thing, workflows: list[Running], results: Path | None
) -> str | None:
    """Why a cache can't be deleted now; None where it can."""
    if one.pinned:
        return f"is pinned; tokencache unpin {one.name}"
    for running in workflows:
        if one.name in running.caches:
            return f"a workflow works on it: {running.who}"
    if results and (trainer := trained_by(one, results)):
        return f"a model is trained on it: {trainer}"
    if not thing.mine:
        return f"{_owner(one.folder)} made it; what other users made stays"
    return None


def trained_by(one: Cache, results: Path) -> str | None:
    """Who trains a model on a cache of this name and length, if anybody does, as people say it."""
    for place in Path(results, one.model, one.dataset).glob(f".{one.max_length}-*.building"):
        run = place.with_name(place.stem.removeprefix("."))
        if holder := holder_of(run):
            return f"process {holder['pid']} on {holder['host']} makes {run}"
    return None


def _owner(folder: Path) -> str:
    try:
        owner = folder.stat().st_uid
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return f"user {owner}"
    except OSError:
        return "another user"


def delete(things: Iterable[Thing]) -> tuple[list[Thing], list[str]]:
    """Delete what can be deleted, each thing at once; returns that, and what went wrong."""
    gone, wrong = [], []
    for thing in things:
        try:
            for path in thing.paths:
                remove(path)
            gone.append(thing)
        except (OSError, UserError) as error:
            wrong.append(f"{thing.paths[0]}: {error}")
    return gone, wrong


def said(things: Iterable[Thing]) -> str:
    """'2 caches, 3.4 GB; 12 token shards, 1.0 GB'."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for thing in things:
        sizes[thing.kind] += thing.bytes
        counts[thing.kind] += 1
    return "; ".join(f"{count(counts[kind], kind)}, {amount(sizes[kind])}" for kind in counts)
