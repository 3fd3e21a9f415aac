"""What `snakemake --delete-all-output` deletes: what the present configuration made in the cache
and results folders, or, if asked for, what any configuration of this user did."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from ...base.publish import TEMPORARY, is_left, matches, remove
from ...base.records import PUT_AWAY, QUARANTINE, SHARED
from ...base.tables import amount, count
from ...config.schema import Config
from ...errors import UserError
from ...plan import inventory, ours
from ...plan.plan import Plan
from ...workflow import leftovers
from ...workflow.running import ended, running
from .on_disk import Cache, caches
from .removal import said, why_not_ours
from .shared import Thing, cache_thing, folder_thing, keyed_folders, keys_of, token_shards

EVERYTHING = "everything"
SHOWN = 20  # of what stays, one line each

Group = tuple[str, str]  # ("caches" or "runs", the model), or SHARED_GROUP
SHARED_GROUP = ("shared", "")


def resolved(config: Config) -> Plan:
    """What the present configuration makes."""
    from ...plan.resolve import resolve

    try:
        return resolve(config)
    except UserError as error:
        raise UserError(
            f"{error}\nSo nobody can tell what the present configuration made. `snakemake "
            f"--delete-all-output --config clean={EVERYTHING}` deletes what you made with any "
            "configuration; `tokencache clear` deletes caches by name"
        ) from None


class AllOutput:
    """What goes, found once; a target's share of it is told when it is asked for.

    plan: None for everything. Raises UserError while somebody works with one of the folders.
    """

    def __init__(self, config: Config, plan: Plan | None) -> None:
        self._cache, self._results = Path(config.cache), Path(config.results)
        self._plan = plan
        check_nobody_works(self._cache, self._results)
        self._things: dict[Group, list[Thing]] = {}
        self._stays: dict[str, str] = {}
        self._others: list[Thing] = []  # of other configurations
        self._said: set[Group] = set()
        found = caches(self._cache) if self._cache.is_dir() else []
        self._find_caches(found)
        self._find_runs()
        self._find_beside()
        self._find_shared(found)

    def asked(self, kinds: Collection[str], model: str | None) -> list[str]:
        """The files and folders that go with the caches or runs of a model or, with what they
        share, of all; on stderr, what they are."""
        groups = [
            group
            for group in self._things
            if (group[0] in kinds and model in (None, group[1]))
            or (group == SHARED_GROUP and model is None)
        ]
        self._say([group for group in groups if group not in self._said], model)
        self._said.update(groups)
        return [path for group in groups for path in self.paths[group]]

    @cached_property
    def paths(self) -> dict[Group, list[str]]:
        """The files and folders that go, by what they are; one folder for all that is in it."""
        roots = (self._cache, self._results)
        found = {}
        for group, things in self._things.items():
            doomed = {str(path) for thing in things for path in thing.paths}
            found[group] = [path for root in roots for path in _joined(root, doomed)]
        return found

    def remove(self, listed: str) -> None:
        """Remove what goes of a file or folder that `paths` has: each thing whole or not at all,
        and then only empty folders. Raises UserError where that is not possible, and where somebody
        works with these folders by now."""
        try:
            for thing, path in self._things_in[listed]:
                if thing.key not in self._wanted_by_now:
                    remove(path)
            _remove_empty(listed)
        except OSError as error:
            raise UserError(f"{listed} can't be deleted: {error}") from None

    @cached_property
    def _things_in(self) -> dict[str, list[tuple[Thing, Path]]]:
        """What goes, by the path that `paths` has for it."""
        found = {path: [] for paths in self.paths.values() for path in paths}
        for thing in (thing for things in self._things.values() for thing in things):
            for path in thing.paths:
                for listed in found.keys() & {str(path), *map(str, path.parents)}:
                    found[listed].append((thing, path))
        return found

    @cached_property
    def _wanted_by_now(self) -> set[str]:
        """The names and keys of what was pinned, and of what a new cache needs, since it was
        looked for; looked for again once, right before the deletion."""
        check_nobody_works(self._cache, self._results)
        found = caches(self._cache) if self._cache.is_dir() else []
        wanted = {one.name for one in found if one.pinned}
        gone = {thing.key for things in self._things.values() for thing in things} - wanted
        try:
            inventory.check_open(self._cache)
            return wanted | {key for one in found if one.name not in gone for key in keys_of(one)}
        except UserError:
            shared = self._things.get(SHARED_GROUP, ())
            return wanted | {thing.key for thing in shared if thing.kind != "leftover"}

    def _say(self, groups: list[Group], model: str | None) -> None:
        if not groups and self._said:
            return
        things = [thing for group in groups for thing in self._things[group]]
        whose = "any configuration of yours" if self._plan is None else "this configuration"
        lines = [f"made by {whose}, and to be deleted: {said(things) or 'nothing'}"]
        if len(things) > 1:
            lines[0] += f"; in all {amount(sum(thing.bytes for thing in things))}"
        stays = [f"{name}: {why}" for name, why in self._stays.items()]
        lines += [f"stays: {line}" for line in stays[:SHOWN]]
        if len(stays) > SHOWN:
            lines.append(f"stays: {len(stays) - SHOWN:,} more")
        if self._others:
            lines.append(
                f"what other configurations made stays: {said(self._others)}; "
                f"`--config clean={EVERYTHING}` deletes it too, `tokencache gc` says what of it "
                "nothing refers to"
            )
        print("".join(f"tokencache: {line}\n" for line in lines), end="", file=sys.stderr)

    def _take(self, group: Group, thing: Thing, why: str | None = None) -> bool:
        """Whether it goes. why: it stays, where that is known already."""
        why = why or why_not_ours(thing) or (None if thing.mine else "another user made it")
        if why is None:
            self._things.setdefault(group, []).append(thing)
        else:
            self._stays[str(thing.paths[0])] = why
        return why is None

    def _of_others(self, thing: Thing) -> None:
        if thing.mine and why_not_ours(thing) is None:
            self._others.append(thing)

    def _is_planned(self, path: Path, planned: str) -> bool:
        """Of a cache or a run; what is not stays."""
        return self._plan is None or str(path) in getattr(self._plan, planned)

    def _find_caches(self, found: list[Cache]) -> None:
        for one in found:
            thing = cache_thing(one)
            pinned = f"it is pinned; tokencache unpin {one.name}" if one.pinned else None
            if self._is_planned(one.folder, "caches"):
                self._take(("caches", one.model), thing, pinned)
            elif not pinned:
                self._of_others(thing)

    def _find_runs(self) -> None:
        for folder in inventory.run_folders(self._results):
            with suppress(OSError):  # gone meanwhile
                thing = folder_thing("run", str(folder), folder, folder.stat().st_mtime)
                if self._is_planned(folder, "runs"):
                    self._take(("runs", folder.parts[-3]), thing)
                else:
                    self._of_others(thing)

    def _find_beside(self) -> None:
        """Checkpoints, and what killed jobs left, of the targets that are meant."""
        for root, kind in ((self._cache, "caches"), (self._results, "runs")):
            for path in matches(root, "*/*/.*"):
                model = path.parts[-3]
                if kind == "caches" and model in SHARED:
                    continue
                named = ours.BESIDE.fullmatch(path.name) or TEMPORARY.fullmatch(path.name)
                if not named or not self._is_planned(path.with_name(named["target"]), kind):
                    continue
                why = None
                if TEMPORARY.fullmatch(path.name) and not is_left(path):
                    why = "somebody may still write to it"
                of_run = path.suffix == ".checkpoints"
                self._take_folder((kind, model), "unfinished run" if of_run else "leftover",
                                  path, why)  # fmt: skip

    def _take_folder(self, group: Group, kind: str, path: Path, why: str | None = None) -> None:
        with suppress(OSError):  # gone meanwhile
            self._take(group, folder_thing(kind, str(path), path, path.lstat().st_mtime), why)

    def _find_shared(self, found: list[Cache]) -> None:
        """Token shards, tokenizers and fetched data that no cache that stays needs."""
        for path in _hidden(self._cache):
            self._take_folder(SHARED_GROUP, "leftover", path)
        gone = {thing.key for things in self._things.values() for thing in things}
        try:
            inventory.check_open(self._cache)
            needed = {key for one in found if one.name not in gone for key in keys_of(one)}
        except UserError as error:
            self._stays["token shards, tokenizers and fetched data"] = str(error)
            return
        planned = None if self._plan is None else set(self._plan.shared_keys())
        kept = 0
        for thing in self._of_shared():
            if planned is not None and thing.key not in planned:
                if thing.key not in needed:
                    self._of_others(thing)
            elif thing.key in needed:
                kept += 1
            else:
                self._take(SHARED_GROUP, thing)
        if kept:
            what = count(kept, "token shard, tokenizer or fetched data set")
            self._stays[what] = "caches that stay need them"

    def _of_shared(self) -> Iterator[Thing]:
        yield from token_shards(self._cache)
        yield from keyed_folders(self._cache, "tokenizers", "tokenizer")
        yield from keyed_folders(self._cache, "sources", "fetched data")
        for path in matches(self._cache, f"{QUARANTINE}/*"):
            with suppress(OSError):
                if not PUT_AWAY.fullmatch(path.name):
                    continue
                yield folder_thing("quarantine", path.name, path, path.lstat().st_mtime)


def check_nobody_works(cache: Path, results: Path) -> None:
    """Raises UserError while a workflow, a training or a builder of a cache runs."""
    works = [
        f"{one.who} (told by {one.file}; remove that file if the workflow has ended)"
        for one in running(cache)
    ]
    for root in (cache, results):
        for place in matches(root, "*/*/.*.building"):
            target = place.with_name(place.stem.removeprefix("."))
            if holder := leftovers.holder_of(target):
                works.append(f"process {holder['pid']} on {holder['host']}, which makes {target}")
    if works:
        raise UserError(
            "nothing was deleted, for somebody works with these folders: "
            f"{'; '.join(works)}. Wait for the end of that, or stop it"
        )


def _hidden(cache: Path) -> Iterator[Path]:
    """What dead processes left among the things that caches share."""
    found = matches(cache, ".*", f"{QUARANTINE}/.*", "tokenizers/.*", "sources/.*", "tokens/*/*/.*")
    yield from [*ended(cache), *filter(is_left, found)]


def _remove_empty(folder: str) -> None:
    """Remove a folder, and those in it, as far as nothing else is in them."""
    for above, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(above)


def _joined(root: Path, paths: Collection[str]) -> list[str]:
    """The same paths below a folder, with one folder for all that is in it."""
    top = str(root)
    above = {top}
    for folder in {os.path.dirname(path) for path in paths}:
        while folder not in above and folder.startswith(top):
            above.add(folder)
            folder = os.path.dirname(folder)

    def walk(folder: str) -> tuple[list[str], bool]:
        found: list[str] = []
        whole = True
        for name in sorted(os.listdir(folder)):
            entry = os.path.join(folder, name)
            if entry in paths:
                found.append(entry)
            elif entry in above:
                below, all_of_it = walk(entry)
                found += below
                whole = whole and all_of_it
            else:
                whole = False
        # Its own folders alone: what a link leads to would stay.
        mine = not os.path.islink(folder) and os.lstat(folder).st_uid == os.geteuid()
        if whole and found and mine and folder != top:
            return [folder], True
        return found, False

    try:
        return walk(top)[0]
    except OSError:  # somebody removes things at the same time: one by one, then
        return sorted(path for path in paths if path.startswith(top))
