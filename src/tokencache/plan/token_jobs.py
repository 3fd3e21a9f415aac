"""Which token shards are missing, and which of them one job makes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config.schema import Config
from .plan import tokenizer_path

# A job takes small shards until it has this many, or this many bytes of them: more where there
# is so much that it would be more jobs than a scheduler should be bothered with.
SHARDS_IN_A_JOB = 256
BYTES_IN_A_JOB = 256 * 2**20
MOST_BYTES_IN_A_JOB = 2**30
JOBS = 48


def batches(
    config: Config,
    token_sets: dict[str, dict[str, Any]],
    tokens: dict[str, dict[str, Any]],
    shards: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Missing token shards, small ones put together until a job is worth its start.

    All by the keys of a plan; a batch has the tokenizer's folder, the data set, the
    tokens keys, their bytes of source, and the token sets that wait for it.
    """
    missing = _missing(config, token_sets)
    # A guess before a shard is fetched.
    sizes = {key: shards[tokens[key]["shard"]]["bytes"] or config.shard_size for key in missing}
    a_job = min(max(BYTES_IN_A_JOB, sum(sizes.values()) // JOBS), MOST_BYTES_IN_A_JOB)
    found: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] | None = None
    kind = None
    for key, waiting in missing.items():
        entry, size = tokens[key], sizes[key]
        full = current and (
            current["bytes"] + size > a_job or len(current["tokens"]) >= SHARDS_IN_A_JOB
        )
        before, kind = kind, (entry["tokenizer"], entry["recipe"], waiting[0])
        if current is None or kind != before or full:
            current = {
                "tokenizer": tokenizer_path(config.cache, entry["tokenizer"]),
                "dataset": token_sets[waiting[0]]["dataset"],
                "tokens": [],
                "bytes": 0,
                "token_sets": [],
            }
            found[f"{current['dataset']}-{len(found) + 1:04d}"] = current
        current["tokens"].append(key)
        current["bytes"] += size
        current["token_sets"] += [t for t in waiting if t not in current["token_sets"]]
    return found


def _missing(config: Config, token_sets: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The token sets that wait for each token shard that is not there."""
    # A folder that others have there may be closed to us.
    tokenizers = dict.fromkeys(made_of["tokenizer"] for made_of in token_sets.values())
    there = {name: _shards_in(Path(config.cache, "tokens", name)) for name in tokenizers}
    waiting: dict[str, list[str]] = {}
    for token_set, made_of in token_sets.items():
        known = there[made_of["tokenizer"]]
        for keys in made_of["splits"].values():
            for key in keys:
                if key not in known:
                    waiting.setdefault(key, []).append(token_set)
    return waiting


def _shards_in(folder: Path) -> set[str]:
    """Keys of the token shards of one tokenizer that are there."""
    found = set()
    for part in os.scandir(folder) if folder.is_dir() else ():
        for entry in os.scandir(part.path) if part.is_dir() else ():
            if entry.name.endswith(".arrow"):
                found.add(entry.name.removesuffix(".arrow"))
    return found
