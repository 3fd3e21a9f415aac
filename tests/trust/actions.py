"""What trials do besides `tokencache WORDS`: functions that the server's children call."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from tokencache.config import load as config_files
from tokencache.config.load import load
from tokencache.errors import UserError
from tokencache.plan.resolve import resolve
from tokencache.workflow import leftovers

PLANNED = "planned.json"


def plan(config: str = "config.yaml") -> int:
    """As a workflow starts: write the plan, and take away what dead jobs left. A second file says
    where the plan is and what it makes."""
    try:
        files = [Path(config)]
        made = resolve(load(config_files.read(files), files))
        made.make_folders()
        made.write()
        leftovers.take(made)
    except UserError as error:
        return _said(error)
    parts = [part for cache in made.caches for part in made.parts_of(cache)]
    stages = {
        "fetch": made.fetches,
        "materialize-tokenizer": _with(made.tokenizers, "training", False),
        "train-tokenizer": _with(made.tokenizers, "training", True),
        "tokenize": made.batches,
        "pack-part": parts,
        "pack": made.caches,
        "train": made.runs,
    }
    found = {"plan": made.path, "jobs": {stage: list(names) for stage, names in stages.items()}}
    with contextlib.suppress(OSError):  # where the disk is full
        Path(PLANNED).write_text(json.dumps(found))
    return 0


def _with(entries: dict[str, dict[str, Any]], key: str, wanted: bool) -> list[str]:
    return [name for name, entry in entries.items() if (key in entry) == wanted]


def everything(config: str) -> int:
    """Plan, and make all caches of the plan, in this process."""
    from tokencache.workflow import stages

    try:
        files = [Path(config)]
        made = resolve(load(config_files.read(files), files))
        made.write()
        for folder in made.tokenizers:
            stages.materialize_tokenizer(made, folder)
        for batch in made.batches:
            stages.tokenize_batch(made, batch)
        for cache in made.caches:
            stages.pack_cache(made, cache)
    except UserError as error:
        return _said(error)
    return 0


def read(model: str, dataset: str, max_length: int, out: str) -> int:
    """Every row of a cache, as a user's script reads it, into a file."""
    import tokencache

    try:
        splits = tokencache.load(model, dataset, max_length)
        rows = {
            name: [_plain(split[n]) for n in range(len(split))] for name, split in splits.items()
        }
    except UserError as error:
        return _said(error)
    Path(out).write_text(json.dumps(rows))
    return 0


def _plain(row: dict[str, Any]) -> dict[str, list[int]]:
    return {name: [int(value) for value in values] for name, values in row.items()}


def _said(error: UserError) -> int:
    print(f"tokencache: {error}", flush=True)
    return 1
