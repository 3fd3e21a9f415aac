"""What was made of what: from runs to sources, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...base.json_files import read_json
from ...base.records import CACHE_FILE, PROVENANCE_FILE, RUN_FILE
from ...config.schema import Config
from ...errors import UserError
from ...plan.inventory import cache_folders, rows_key, run_folders
from ...plan.plan import PLANS, Plan, tokenizer_path, tokens_path
from ...sources import find
from . import made_of
from .experiment import plan_of
from .made_of import Changed, Sources, SourceShard

CHECKPOINTS = re.compile(r"\.([0-9]+-[0-9a-f]{12})\.checkpoints")
IMAGE = re.compile(r"^image: (\S+)(?: (\S+))?$", re.MULTILINE)


@dataclass
class Node:
    """A thing with what is known of it, and things that it was made of or that were made of it."""

    kind: str
    path: str
    facts: dict[str, Any] = field(default_factory=dict)
    made_of: list[Node] = field(default_factory=list)
    made: list[Node] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """For programs."""
        found = {"kind": self.kind, "path": self.path} | self.facts
        for name in ("made_of", "made"):
            if below := getattr(self, name):
                found[name] = [node.json() for node in below]
        return found


class Provenance:
    """What the records in the cache and results folders tell, read when it is asked for."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._sources = Sources(config.shard_size)

    @cached_property
    def caches(self) -> dict[str, dict[str, Any]]:
        """cache.json of all caches that can be read, by folder."""
        return _records(
            cache_folders(self.config.cache), CACHE_FILE, {"sources", "settings", "key"}
        )

    @cached_property
    def runs(self) -> dict[str, dict[str, Any]]:
        """run.json of all runs."""
        return _records(run_folders(self.config.results), RUN_FILE, {"made_of", "key"})

    @cached_property
    def _rows(self) -> dict[str, list[str]]:
        """The caches of the same rows, whatever their format."""
        found: dict[str, list[str]] = {}
        for folder, about in self.caches.items():
            found.setdefault(rows_key(about), []).append(folder)
        return found

    @cached_property
    def _plans(self) -> list[tuple[Path, Plan]]:
        """The newest first; a damaged one tells nothing."""
        found = []
        for file in sorted(PLANS.glob("*.json"), reverse=True):
            with suppress(OSError, ValueError, KeyError, UserError):
                found.append((file, Plan.read(file)))
        return found

    # Upwards

    def run(self, folder: Path) -> Node:
        """A run that is finished, wherever its folder is now."""
        about = read_json(folder / RUN_FILE)
        node = Node("run", str(folder), {n: about[n] for n in ("key", "model", "dataset")})
        # Told below, or too long.
        told = ("cache", "weights", "weights_files", "chat_template", "tool_template")
        made_with = {n: v for n, v in about["made_of"].items() if n not in told}
        node.facts |= {"max_length": about["max_length"], "made_with": made_with}
        node.facts["versions"] = about["versions"]
        try:
            record = read_json(folder / PROVENANCE_FILE)
        except (OSError, ValueError):
            record = {}  # an earlier version trained it
        wanted = ("finished", "machine", "image", "config")
        node.facts |= {name: record[name] for name in wanted if name in record}
        node.facts["versions"] |= record.get("versions", {})
        named = record.get("cache", {}).get("path")
        found = self._rows.get(about["made_of"]["cache"], [])
        self._add_cache(node, next((c for c in found if c == named), next(iter(found), named)))
        self._add_weights(node, about["made_of"]["weights"])
        return node

    def unfinished(self, folder: Path, checkpoint: str) -> Node:
        """A checkpoint of a run that goes on; folder: what the run's will be.

        Raises UserError where no plan knows the run.
        """
        plans = [(str(file), plan) for file, plan in self._plans]
        if not any(str(folder) in plan.runs for _, plan in plans):
            plans = [("the present config", plan_of(self.config))]
        for file, plan in plans:
            if run := plan.runs.get(str(folder)):
                node = Node("checkpoint", checkpoint, {n: run[n] for n in ("key", "model")})
                node.facts |= {n: run[n] for n in ("dataset", "max_length")}
                node.facts |= {"of": str(folder), "config": plan.data["config"], "plan": file}
                self._add_cache(node, run["cache"])
                self._add_weights(node, run["weights"])
                return node
        raise UserError(
            f"{checkpoint}: neither a plan in {PLANS} nor the present config knows {folder}"
        )

    def _add_cache(self, node: Node, folder: str | None) -> None:
        if folder in self.caches:
            node.made_of.append(self.cache(Path(folder)))
        elif folder:
            node.made_of.append(Node("cache", folder, {"state": "gone"}))

    def _add_weights(self, node: Node, weights: dict[str, Any] | None) -> None:
        if weights:
            name = weights["path"] or f"{weights['hub']}@{weights['revision']}"
            node.made_of.append(Node("weights", name))

    def cache(self, folder: Path) -> Node:
        """A cache, down to its sources."""
        about = self.caches.get(str(folder)) or read_json(folder / CACHE_FILE)
        node = Node("cache", str(folder), {n: about[n] for n in ("key", "model", "dataset")})
        node.facts |= {"settings": about["settings"], "versions": about["versions"]}
        node.facts["command"] = about["command"]
        for file, plan in self._plans:
            if str(folder) in plan.caches:
                node.facts |= {"plan": str(file), "config": plan.data["config"]}
                break
        if image := _image_in_log(folder, self.config.cache):
            node.facts["image"] = image
        tokenizer = tokenizer_path(self.config.cache, about["tokenizer"]["key"])
        node.made_of.append(Node("tokenizer", tokenizer, _there(tokenizer)))
        for split, shards in made_of.shards(about).items():
            by_file: dict[str, list[SourceShard]] = {}
            for shard in shards:
                by_file.setdefault(shard.path, []).append(shard)
            for path, mine in by_file.items():
                node.made_of.append(self._source(split, path, mine, about))
        return node

    def _source(self, split: str, path: str, mine: list[SourceShard], about: dict) -> Node:
        facts: dict[str, Any] = {"split": split, "state": "as it was"}
        if not os.path.exists(path):
            facts["state"] = "gone"
        else:
            now = self._keys_now(mine[0], about, known=True)
            if now is None:
                facts["state"] = "there; what it holds now was not looked at"
            elif (kept := self._kept(mine, now, about)) < len(mine):
                facts["state"] = f"edited since: {kept} of {len(mine)} shards are still in it"
        tokenizer = about["tokenizer"]["key"]
        node = Node("source", path, facts)
        facts["shards"] = [
            {
                "key": shard.key,
                "bytes": shard.bytes,
                "token_shards": [
                    tokens_path(self.config.cache, tokenizer, key) for key in shard.tokens
                ],
            }
            for shard in mine
        ]
        return node

    def _keys_now(self, shard: SourceShard, about: dict, known: bool) -> set[str] | None:
        """The keys of the shards that a source has now; None where that can't be told.

        known: only where the index of sources knows it, so that nothing is read.
        """
        found = made_of.source_of(shard, about)
        if found is None or found[0] is None:
            return None if found is None else {shard.key}
        cut = self._sources.cut(found[0], known)
        return None if cut is None else set(cut)

    def _kept(self, mine: list[SourceShard], now: set[str], about: dict) -> int:
        """How many shards a file still has: by its cuts now, or where they were, for shard_size
        may have been another one."""
        kept = 0
        for shard in mine:
            if shard.key not in now:
                try:
                    self._sources.piece(shard, made_of.source_of(shard, about)[0])
                except Changed:
                    continue
            kept += 1
        return kept

    # Downwards

    def made_of_cache(self, folder: str) -> list[Node]:
        """The runs that were trained on a cache's rows."""
        rows = rows_key(self.caches[folder]) if folder in self.caches else None
        return [
            Node("run", run, {"key": about["key"]})
            for run, about in self.runs.items()
            if about["made_of"]["cache"] == rows
        ]

    def source(self, path: str) -> Node:
        """A source, with all that was made of it, also of what it held before. Raises UserError
        where nothing was."""
        real, exists = os.path.realpath(path), os.path.isfile(path)
        now = None
        if exists:
            with suppress(UserError):  # its name tells no format; then its path does alone
                now = set(self._sources.cut(find.find([path], "path")[0][0]) or ())
        node = Node("source", path, {"state": "there" if exists else "gone"})
        for folder, about in self.caches.items():
            shards = [s for of_split in made_of.shards(about).values() for s in of_split]
            named = [s for s in shards if os.path.realpath(s.path) == real]
            mine = named or [s for s in shards if s.key in (now or ())]
            if mine:
                present = now
                if named and exists:
                    present = self._keys_now(named[0], about, known=False)
                node.made.append(self._made(folder, mine, present, about))
        if not node.made:
            raise UserError(
                f"{path}: no cache in {self.config.cache} was made of it, and it is no run, cache, "
                "token shard or tokenizer"
            )
        return node

    def _made(
        self, folder: str, mine: list[SourceShard], now: set[str] | None, about: dict
    ) -> Node:
        """A cache that was made of some shards of a source that has these now."""
        state = "made of what it holds now"
        if now is None:
            state = "made of it"
        elif (kept := self._kept(mine, now, about)) < len(mine):
            state = f"made of what it held before: {kept} of {len(mine)} shards are still in it"
        elif len(now) > len(mine):
            state = f"made of what it held before: of {len(now)} shards that are in it, {kept}"
        tokenizer = about["tokenizer"]["key"]
        paths = [tokens_path(self.config.cache, tokenizer, k) for s in mine for k in s.tokens]
        node = Node("cache", folder, {"key": about["key"], "state": state})
        names = {shard.path for shard in mine}
        node.facts |= {"source_was_called": sorted(names), "token_shards": _present(paths)}
        node.made = self.made_of_cache(folder)
        return node

    def users_of(self, kind: str, path: str, key: str) -> Node:
        """A tokenizer, a token shard or a fetched data set, with the caches made of it."""
        node = Node(kind, path, {"key": key} | _there(path))
        for folder, about in self.caches.items():
            shards = [s for of_split in made_of.shards(about).values() for s in of_split]
            mine = [s for s in shards if key in s.tokens]
            uses = mine or key == about["tokenizer"]["key"]
            if uses or path in made_of.fetched_folders(about, self.config.cache):
                below = Node("cache", folder, {"key": about["key"]})
                below.made = self.made_of_cache(folder)
                node.made.append(below)
            if mine and not node.made_of:
                tokenizer = tokenizer_path(self.config.cache, about["tokenizer"]["key"])
                node.made_of = [Node("tokenizer", tokenizer, _there(tokenizer))]
                node.made_of.append(self._source("", mine[0].path, mine, about))
        return node


def _records(folders: Iterable[Path], name: str, needed: set[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in folders:
        with suppress(OSError, ValueError):  # it goes away, or is damaged: verify says so
            about = read_json(folder / name)
            if isinstance(about, dict) and needed <= about.keys():
                found[str(folder)] = about
    return found


def _there(path: str) -> dict[str, str]:
    return {"state": "there" if os.path.exists(path) else "gone"}


def _present(paths: list[str]) -> dict[str, Any]:
    there = [path for path in paths if os.path.exists(path)]
    return {"there": len(there), "of": len(paths), "paths": paths}


def _image_in_log(folder: Path, cache: str) -> dict[str, str] | None:
    """The container image that a cache's job said it ran in; cache.json is the same in all."""
    with suppress(OSError, ValueError):
        log = Path("logs", "pack", os.path.relpath(folder, cache)).with_suffix("")
        text = log.with_name(f"{log.name}.log").read_text(encoding="utf-8", errors="replace")
        if match := IMAGE.search(text):
            return {"name": match[1]} | ({"blake3": match[2]} if match[2] else {})
    return None
