"""`tokencache clear NAME… | --all`: delete caches, and token shards that no other one needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..base.records import CACHE_FILE
from ..base.tables import ago, amount, count, show, show_json
from ..errors import UserError
from ..plan import inventory
from ..workflow.running import running
from .lib.experiment import add_folder_words, folders_of
from .lib.on_disk import Cache, caches, chosen
from .lib.removal import delete, said, why_it_stays, why_not_ours
from .lib.shared import Thing, cache_thing, keys_of, needs_of, token_shards


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="*", help="MODEL, MODEL/DATASET, MODEL/DATASET/MAX_LENGTH; * and ? match"
    )
    parser.add_argument("--all", action="store_true", help="every cache that is not pinned")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_folder_words(parser)


def run(arguments: argparse.Namespace) -> int:
    """Say what it frees, ask, delete; 1 where a cache that was named stays.

    Raises UserError for a name that means none, and where nobody can be asked.
    """
    if bool(arguments.name) == arguments.all:
        raise UserError("name the caches to delete (`tokencache list` shows them), or --all")
    if arguments.json and not arguments.yes:
        raise UserError("with --json nobody is asked; add --yes")
    cache, results = folders_of(arguments)
    found = caches(cache)
    wanted = found if arguments.all else chosen(found, arguments.name, cache)
    things = {one.name: cache_thing(one) for one in wanted}
    stays = _strange(wanted, things, arguments.all)
    stays |= _stays(cache, results, wanted, things)
    doomed = [one for one in wanted if one.name not in stays]
    shared = {key for one in doomed if (needs := needs_of(one)) for key in needs.tokens}
    shards, note = _free(cache, doomed, shared)
    if not arguments.json:
        _show([things[one.name] for one in doomed], stays, shards, note)
    if not doomed or not (arguments.yes or _asked()):
        gone, wrong = [], []
    else:
        # Looked up again: while somebody thought about it, a workflow may have begun.
        wanted = [one for one in caches(cache) if one.name in {o.name for o in doomed}]
        stays |= _stays(cache, results, wanted, things)
        gone, wrong = delete(things[one.name] for one in wanted if one.name not in stays)
        names = {thing.key for thing in gone}
        # What stays, and what was published meanwhile, may need some of them.
        more, not_gone = delete(_free(cache, [o for o in doomed if o.name in names], shared)[0])
        gone, wrong = gone + more, wrong + not_gone
    if arguments.json:
        show_json(_about(gone, stays, wrong))
    else:
        print(f"deleted: {said(gone)}" if gone else "nothing was deleted")
        print("".join(f"\n{line}" for line in wrong), end="")
    return int(bool(wrong) or (bool(stays) and not arguments.all))


def _strange(wanted: list[Cache], things: dict[str, Thing], all_: bool) -> dict[str, str]:
    """By name, why nothing proves that tokencache made a thing; those that it made are left out.

    What somebody names may be damaged.
    """
    found = {one.name: why_not_ours(things[one.name]) for one in wanted}
    return {
        one.name: f"it is not known to be made by tokencache: {found[one.name]}"
        for one in wanted
        if found[one.name] and (all_ or not (one.folder / CACHE_FILE).is_file())
    }


def _stays(
    cache: Path, results: Path | None, wanted: list[Cache], things: dict[str, Thing]
) -> dict[str, str]:
    """Why those can't be deleted that can't, by name."""
    workflows = running(cache)
    found = {one.name: why_it_stays(one, things[one.name], workflows, results) for one in wanted}
    return {name: why for name, why in found.items() if why}


def _free(cache: Path, doomed: list[Cache], shared: set[str]) -> tuple[list[Thing], str]:
    """Of the token shards that some caches share, those that nothing else needs; and a note on
    the others."""
    names = {one.name for one in doomed}
    try:
        inventory.check_open(cache)
        needed = {key for workflow in running(cache) for key in workflow.keys}
        for one in caches(cache):
            if one.name not in names:
                needed.update(keys_of(one))
    except UserError as error:
        return [], f"no token shard goes: {error}"
    there = [thing for thing in token_shards(cache) if thing.key in shared]
    free = [thing for thing in there if thing.key not in needed]
    mine = [thing for thing in free if thing.mine]
    known = [thing for thing in mine if not why_not_ours(thing)]
    notes = {
        "that other caches need": len(there) - len(free),
        "that other users made": len(free) - len(mine),
        "not known to be made by tokencache": len(mine) - len(known),
    }
    return known, "; ".join(
        f"{count(number, 'token shard')} {why}" for why, number in notes.items() if number
    )


def _show(doomed: list[Thing], stays: dict[str, str], shards: list[Thing], note: str) -> None:
    if doomed:
        rows = [[thing.key, amount(thing.bytes), ago(thing.time)] for thing in doomed]
        show(("to delete", "size", "made or used"), rows, right=("size", "made or used"))
        print(f"\nfrees {amount(sum(thing.bytes for thing in [*doomed, *shards]))}: ", end="")
        print(said([*doomed, *shards]))
    for name, why in stays.items():
        print(f"stays: {name}: {why}")
    if note:
        print(f"stays: {note}")


def _asked() -> bool:
    try:
        return input("delete? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise UserError("nobody answered; to delete without being asked, add --yes") from None


def _about(gone: list[Thing], stays: dict[str, str], wrong: list[str]) -> dict[str, Any]:
    return {
        "deleted": [thing.key for thing in gone if thing.kind == "cache"],
        "token_shards_deleted": sum(thing.kind == "token shard" for thing in gone),
        "bytes_freed": sum(thing.bytes for thing in gone),
        "stays": stays,
        "failed": wrong,
    }
