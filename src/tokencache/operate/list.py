"""`tokencache list [NAME…]`: every cache on disk."""

from __future__ import annotations

import argparse
from typing import Any

from ..base.tables import ago, amount, count, iso, show, show_json
from .lib.experiment import add_folder_words, folders_of
from .lib.on_disk import Cache, caches, chosen, runs_by_cache

COLUMNS = ("cache", "documents", "tokens", "size", "made", "version", "last used", "runs", "")
NUMBERS = ("documents", "tokens", "size", "made", "last used", "runs")


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="*", help="MODEL, MODEL/DATASET, MODEL/DATASET/MAX_LENGTH; * and ? match"
    )
    add_folder_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print a row a cache. Raises UserError for a name that means none."""
    cache, results = folders_of(arguments)
    found = caches(cache)
    if arguments.name:
        found = chosen(found, arguments.name, cache)
    runs = runs_by_cache(found, results)
    if arguments.json:
        show_json([_about(one, runs.get(one.name, [])) for one in found])
        return
    if not found:
        print(f"no caches in {cache}")
        return
    show(COLUMNS, (_row(one, runs.get(one.name, [])) for one in found), right=NUMBERS)
    said = f"\n{count(len(found), 'cache')}, {amount(sum(one.bytes for one in found))}"
    print(f"{said}; what they share is in `tokencache stats`")


def _row(one: Cache, runs: list[str]) -> list[str]:
    version = one.about["versions"]["tokencache"] if one.about else "-"
    notes = [one.format] * (one.format == "view") + ["pinned"] * one.pinned
    notes += ["cache.json can't be read"] * (not one.about)
    return [
        one.name,
        f"{one.documents:,}" if one.about else "-",
        f"{one.tokens:,}" if one.about else "-",
        amount(one.bytes),
        ago(one.made),
        version,
        ago(one.used),
        str(len(runs)),
        ", ".join(notes),
    ]


def _about(one: Cache, runs: list[str]) -> dict[str, Any]:
    return {
        "name": one.name,
        "path": str(one.folder),
        "model": one.model,
        "dataset": one.dataset,
        "max_length": one.max_length,
        "key": one.about.get("key"),
        "format": one.format,
        "documents": one.documents,
        "tokens": one.tokens,
        "bytes": one.bytes,
        "made": iso(one.made),
        "versions": one.about.get("versions"),
        "command": one.about.get("command"),
        "last_used": iso(one.used),
        "runs": runs,
        "pinned": one.pinned,
        "readable": bool(one.about),
    }
