"""What making something will cost, from what jobs of this folder took and left.

logs/STAGE/TARGET.tsv       seconds of a job, as Snakemake measured them
.tokencache/plans/*.json    how much a tokenize job had to do
cache/tokens/…/KEY.json     documents and tokens of a token shard
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..base.json_files import read_json
from . import inventory
from .plan import LOGS, PLANS, Plan, made_at, tokens_path

PLANS_READ = 5  # the newest: each can be megabytes
SHARDS_READ = 500


@dataclass(frozen=True)
class Rate:
    """So much a second, in so many jobs with their starts; 0 jobs: nothing was measured."""

    amount: float = 0.0
    seconds: float = 0.0
    jobs: int = 0

    def seconds_for(self, amount: float | None) -> float | None:
        known = amount is not None and self.jobs and self.amount
        return amount * self.seconds / self.amount if known else None

    @property
    def a_second(self) -> float | None:
        return self.amount / self.seconds if self.jobs and self.seconds else None

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.amount + other.amount, self.seconds + other.seconds,
                    self.jobs + other.jobs)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What is to do for a cache, and what that will take; None: nothing was measured.

    shards, source_bytes: to tokenize; source_bytes is None where a source is not fetched yet.
    Seconds are those of jobs, one after the other. tokens_bytes, cache_bytes: on disk.
    """

    shards: int
    source_bytes: int | None
    tokenize_seconds: float | None
    pack_seconds: float | None
    tokens_bytes: float | None
    cache_bytes: float | None


class Measured:
    """What the jobs of the current folder took, and the caches in a cache folder.

    tokenizing: bytes of source a second, by the tokenizer's folder. packing: tokens a second.
    """

    def __init__(self, cache: str | Path) -> None:
        self.tokenizing = tokenizing()
        self.packing = Rate()
        self.caches: dict[Path, dict[str, Any]] = {}
        for folder in inventory.cache_folders(cache):
            with suppress(OSError, ValueError):
                about = inventory.brief(folder, inventory.NEEDED)
                self.caches[folder] = about
                if logs := list(_logs_of_packing(folder)):
                    self.packing += Rate(_tokens(about), sum(map(seconds_in, logs)), len(logs))

    def tokenizing_by(self, tokenizer: str) -> Rate:
        """Of one tokenizer, or where it tokenized nothing yet, of all."""
        return self.tokenizing.get(tokenizer) or sum(self.tokenizing.values(), Rate())


def _logs_of_packing(folder: Path) -> Iterator[Path]:
    """Of all jobs that made a cache, if this is where they ran."""
    model, dataset, name = folder.parts[-3:]
    log = LOGS / "pack" / model / dataset / f"{name}.tsv"
    if log.exists():
        yield log
        yield from (LOGS / "pack_part" / model / dataset / f".{name}.parts").glob("*.tsv")


def tokenizing() -> dict[str, Rate]:
    """Bytes of source a second of tokenize jobs in the current folder, by tokenizer folder."""
    waiting = {file.stem: file.stat().st_mtime for file in LOGS.glob("tokenize/*.tsv")}
    found: dict[str, Rate] = {}
    for file in sorted(PLANS.glob("*.json"), reverse=True)[:PLANS_READ]:
        if not waiting:
            break
        with suppress(OSError, ValueError, KeyError):
            made, batches = made_at(file), read_json(file)["batches"]
            for name in [name for name in batches if waiting.get(name, 0.0) >= made]:
                del waiting[name]
                seconds = seconds_in(LOGS / "tokenize" / f"{name}.tsv")
                tokenizer = batches[name]["tokenizer"]
                one = Rate(batches[name]["bytes"], seconds, 1)
                found[tokenizer] = found.get(tokenizer, Rate()) + one
    return found


def of_cache(plan: Plan, path: str, measured: Measured) -> Cost:
    """What making a cache of the plan will cost; nothing where it is there."""
    entry = plan.caches[path]
    missing = plan.missing_of(entry)
    shares = _shares(plan, entry)
    to_read = _source_bytes(plan, missing)
    tokenizing = tokens_bytes = packing = cache_bytes = 0.0
    if missing:
        tokenizing = measured.tokenizing_by(entry["tokenizer"]).seconds_for(to_read)
        tokens_bytes = _scaled(shares, "bytes", to_read)
    if not Path(path).exists():
        tokens = _tokens_in(plan, entry, shares)
        packing = measured.packing.seconds_for(tokens)
        cache_bytes = _cache_bytes(measured, entry, tokens)
    return Cost(len(missing), to_read, tokenizing, packing, tokens_bytes, cache_bytes)


def _source_bytes(plan: Plan, keys: Iterable[str]) -> int | None:
    """None where one of them is not fetched yet."""
    sizes = [plan.shard_of(key)["bytes"] for key in keys]
    return None if None in sizes else sum(sizes)


def _shares(plan: Plan, entry: dict[str, Any]) -> dict[str, float]:
    """Documents, tokens and bytes on disk for a byte of source: of token shards that are there,
    of the cache itself or else of the newest one of that name; empty where none is."""
    missing = set(plan.missing_of(entry))
    own = {plan.tokens_path(key): plan.shard_of(key)["bytes"]
           for key in _keys(plan, entry) if key not in missing}  # fmt: skip
    if found := _counted(own):
        return found
    for older in inventory.caches_of(plan.cache, entry["model"], entry["dataset"], "*"):
        shards = [
            shard for files in older["sources"].values() for f in files for shard in f["shards"]
        ]
        tokenizer = older["tokenizer"]["key"]
        if found := _counted(
            {
                tokens_path(plan.cache, tokenizer, shard["tokens"]): shard["bytes"]
                for shard in shards
            }
        ):
            return found
    return {}


def _counted(shards: dict[str, int | None]) -> dict[str, float]:
    """The shares of some token shards, by their paths with the bytes of their sources."""
    sums = dict.fromkeys(("documents", "tokens", "bytes"), 0)
    source = 0
    for path, size in islice(shards.items(), SHARDS_READ):
        with suppress(OSError, ValueError, KeyError):
            about = read_json(Path(path).with_suffix(".json"))
            for name in sums:
                sums[name] += about[name]
            source += size or 0
    return {name: amount / source for name, amount in sums.items()} if source else {}


def _keys(plan: Plan, entry: dict[str, Any]) -> Iterator[str]:
    for token_set in plan.sets_of(entry):
        for keys in plan.token_sets[token_set]["splits"].values():
            yield from keys


def _scaled(shares: dict[str, float], name: str, source: int | None) -> float | None:
    return None if source is None or not shares else shares[name] * source


def _tokens_in(plan: Plan, entry: dict[str, Any], shares: dict[str, float]) -> float | None:
    """About how many tokens a cache will hold."""
    source = _source_bytes(plan, _keys(plan, entry))
    tokens, documents = (_scaled(shares, name, source) for name in ("tokens", "documents"))
    if tokens is None or documents is None or entry["overflow"] == "split":
        return tokens
    return min(tokens, documents * entry["max_length"])


def _cache_bytes(measured: Measured, entry: dict[str, Any], tokens: float | None) -> float | None:
    """By the bytes a token of caches like it: of the same name, or else any."""
    wanted = entry.get("format", "dataset"), entry["packing"]
    alike = {
        folder: (sum(file["bytes"] for file in about["files"].values()), _tokens(about))
        for folder, about in measured.caches.items()
        if (about["settings"].get("format", "dataset"), about["settings"].get("packing")) == wanted
    }
    name = entry["model"], entry["dataset"]
    mine = [sizes for folder, sizes in alike.items() if folder.parts[-3:-1] == name]
    found = mine or list(alike.values())
    if tokens is None or not found:
        return None
    return tokens * sum(size for size, _ in found) / sum(count for _, count in found)


def _tokens(about: dict[str, Any]) -> int:
    return sum(split["tokens"] for split in about["splits"].values())


def seconds_in(file: Path) -> float:
    """Seconds in a file that Snakemake's `benchmark` wrote; 0 where it is missing."""
    try:
        with open(file, encoding="utf-8") as stream:
            return sum(float(row["s"]) for row in csv.DictReader(stream, delimiter="\t"))
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0
