"""`tokencache stats`: what the cache folder holds in all, and what sharing saved."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..base.publish import size_of
from ..base.records import CACHE_FILE
from ..base.tables import amount, count, duration, show, show_json
from ..plan import costs, inventory
from .lib.experiment import add_folder_words, folders_of
from .lib.on_disk import Cache, caches
from .lib.shared import Thing, keyed_folders, needs_of, token_shards


def add_words(parser: argparse.ArgumentParser) -> None:
    add_folder_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print totals of each kind. Raises UserError where there is no cache folder."""
    cache, results = folders_of(arguments)
    found = caches(cache)
    shards = {thing.key: thing for thing in token_shards(cache) if thing.kind == "token shard"}
    used, source_bytes, unknown = _uses(found)
    runs = list(inventory.run_folders(results)) if results else []
    totals = {
        "caches": _total(one.bytes for one in found),
        "token shards": _sum(shards.values()),
        "tokenizers": _sum(keyed_folders(cache, "tokenizers", "tokenizer")),
        "fetched data": _sum(keyed_folders(cache, "sources", "fetched data")),
        "runs": _total(map(size_of, runs)),
    }
    unneeded = (thing for key, thing in shards.items() if key not in used)
    about = {
        "cache": str(cache),
        "results": results and str(results),
        **{kind.replace(" ", "_"): total for kind, total in totals.items()},
        "views": sum(one.format == "view" for one in found),
        "token_shards_unneeded": None if unknown else _sum(unneeded),
        "unreadable": [one.name for one in unknown],
        "sharing": _sharing(used, source_bytes, shards),
    }
    if arguments.json:
        show_json(about)
    else:
        _show(about, totals)


def _uses(found: list[Cache]) -> tuple[Counter[str], dict[str, int], list[Cache]]:
    """How many caches need each token shard, its bytes of source, and caches that don't say."""
    used: Counter[str] = Counter()
    source_bytes: dict[str, int] = {}
    unknown = []
    for one in found:
        needs = needs_of(one)
        if needs is None:
            unknown.append(one)
        else:
            used.update(needs.tokens.keys())
            source_bytes |= needs.tokens
    return used, source_bytes, unknown


def _sharing(
    used: Counter[str], source_bytes: dict[str, int], shards: dict[str, Thing]
) -> dict[str, Any]:
    """What it would have taken to tokenize for each cache alone, of token shards that are there."""
    times = {key: number for key, number in used.items() if key in shards}
    saved = sum(source_bytes[key] * (number - 1) for key, number in times.items())
    rate = sum(costs.tokenizing().values(), costs.Rate())
    return {
        "token_shards_of_each_alone": sum(times.values()),
        "token_shards": len(times),
        "bytes_saved": sum(shards[key].bytes * (number - 1) for key, number in times.items()),
        "source_bytes_saved": saved,
        "seconds_saved": rate.seconds_for(saved),
    }


def _sum(things: Iterable[Thing]) -> dict[str, int]:
    return _total(thing.bytes for thing in things)


def _total(sizes: Iterable[int]) -> dict[str, int]:
    found = list(sizes)
    return {"count": len(found), "bytes": sum(found)}


def _show(about: dict[str, Any], totals: dict[str, dict[str, int]]) -> None:
    rows = [[kind, f"{t['count']:,}", amount(t["bytes"])] for kind, t in totals.items()]
    rows.append(["in all", "", amount(sum(t["bytes"] for t in totals.values()))])
    show(("", "count", "size"), rows, right=("count", "size"))
    print()
    if about["views"]:
        print(f"{count(about['views'], 'cache')} of these: views, which hold no tokens themselves")
    sharing, unneeded = about["sharing"], about["token_shards_unneeded"]
    if sharing["bytes_saved"]:
        each, made = sharing["token_shards_of_each_alone"], sharing["token_shards"]
        print(
            f"shared: {count(made, 'token shard')} instead of the {each:,} that separate caches "
            f"would need; that saved {amount(sharing['bytes_saved'])} of disk and the "
            f"tokenization of {amount(sharing['source_bytes_saved'])} of text"
            f"{_time(sharing['seconds_saved'])}"
        )
    if unneeded and unneeded["count"]:
        print(
            f"needed by no cache: {count(unneeded['count'], 'token shard')}, "
            f"{amount(unneeded['bytes'])}; `tokencache gc` says which may go"
        )
    for name in about["unreadable"]:
        print(f"{Path(about['cache'], name, CACHE_FILE)} can't be read")


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f": {duration(seconds)} of jobs, as measured here"
