"""`tokencache why MODEL DATASET [MAX_LENGTH]`: what is stale, what changed, what it will cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.json_files import read_json
from ..base.tables import amount, count, duration, show_json
from ..config.schema import Combination
from ..plan import costs
from ..plan import stale as reasons
from .lib.experiment import add_config_words, combination, config_of, plan_of

if TYPE_CHECKING:
    from ..plan.plan import Plan

LONGEST = 300  # characters of a value that are shown; --json has all
SHARDS = 20  # of a file that are shown
UNITS = {"parquet": "row groups", "arrow": "record batches"}


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("max_length", type=int, nargs="?", help="default: all of config.yaml")
    add_config_words(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    """Print it for each length. Raises UserError for what the configuration does not make."""
    config = config_of(arguments)
    length = "all" if arguments.max_length is None else arguments.max_length
    wanted = combination(config, arguments.model, arguments.dataset, length)
    # With all that config.yaml builds: what is still wanted is nobody's place to take.
    plan = plan_of(config, *([Combination()] if config.build == "all" else config.build), wanted)
    chosen = config.model_copy(update={"build": [wanted]}).combinations()
    paths = [
        path
        for path, entry in plan.caches.items()
        if (entry["model"], entry["dataset"], entry["max_length"]) in chosen
    ]
    measured = costs.Measured(plan.cache)
    found = [_about(plan, path, measured) for path in paths]
    if arguments.json:
        show_json(found)
        return
    for number, about in enumerate(found):
        print("\n" * bool(number) + "\n".join(_lines(about)))


def _about(plan: Plan, path: str, measured: costs.Measured) -> dict[str, Any]:
    entry, verdict = plan.caches[path], reasons.of_cache(plan, path)
    runs = [run for run, made_of in plan.runs.items() if made_of["cache"] == path]
    return {
        "model": entry["model"],
        "dataset": entry["dataset"],
        "max_length": entry["max_length"],
        "path": path,
        **_verdict(plan, entry, verdict),
        "runs": [{"path": r, **_verdict(plan, entry, reasons.of_run(plan, r))} for r in runs],
        "cost": asdict(costs.of_cache(plan, path, measured)),
        "measured": {
            "tokenize_bytes_a_second": measured.tokenizing_by(entry["tokenizer"]).a_second,
            "pack_tokens_a_second": measured.packing.a_second,
        },
    }


def _verdict(plan: Plan, entry: dict[str, Any], verdict: reasons.Verdict) -> dict[str, Any]:
    return {
        "state": verdict.state,
        "nearest": verdict.nearest,
        "changes": [
            {
                "field": change.name,
                "said": change.said,
                "old": change.old,
                "new": change.new,
                "files": [_file(plan, entry, file) for file in change.files],
            }
            for change in verdict.changes
        ],
    }


def _file(plan: Plan, entry: dict[str, Any], file: reasons.FileChange) -> dict[str, Any]:
    shards = list(_shards(plan, entry, file.path)) if file.shards else []
    return {
        "path": file.path,
        "said": file.said,
        "of": file.of,
        "shards": [shards[number] | {"number": number + 1} for number in file.shards],
    }


def _shards(plan: Plan, entry: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """Each shard of a source, in order: where it begins and ends, and its first row (from 1),
    as far as the token shards before it say that."""
    token_set = plan.token_sets[entry["token_set"]]
    for split, keys in token_set["splits"].items():
        number = 0
        for file in plan.data["sources"][token_set["dataset"]][split]:
            of_file = keys[number : number + len(file["shards"])]
            number += len(of_file)
            if file["path"] == path:
                yield from _places_of(plan, of_file)


def _places_of(plan: Plan, tokens: list[str]) -> Iterator[dict[str, Any]]:
    """tokens: the token shards of one file, in order. Its shards follow each other without a gap;
    the plan says where one of them lies in one of the files that have it."""
    start, row = 0, 1
    for key in tokens:
        shard = plan.shard_of(key)
        stop = start + shard["stop"] - shard["start"] if "start" in shard else None
        yield {
            "start": start if stop is not None else None,
            "stop": stop,
            "unit": UNITS.get(shard["format"], "bytes"),
            "bytes": shard["bytes"],
            "first_row": row,
        }
        counts = Path(plan.tokens_path(key)).with_suffix(".json")
        documents = None
        with suppress(OSError, ValueError, KeyError):
            documents = read_json(counts)["documents"]
        row = None if row is None or documents is None else row + documents
        start = stop


# For people


def _lines(about: dict[str, Any]) -> Iterator[str]:
    yield f"{about['model']}/{about['dataset']}/{about['max_length']}: {_state(about)}"
    yield from _changes(about)
    for run in about["runs"]:
        yield f"its training: {_state(run)}"
        yield from _changes(run)
    if about["state"] != reasons.FRESH:
        yield from _cost(about)


def _state(about: dict[str, Any]) -> str:
    if about["nearest"] is None:
        path = f" ({about['path']})" if about["state"] == reasons.FRESH else ""
        return about["state"] + path
    said = f"{about['state']}; against {about['nearest']}"
    return said if about["changes"] else f"{said}: {reasons.BEHAVIOUR}"


def _changes(about: dict[str, Any]) -> Iterator[str]:
    for change in about["changes"]:
        if change["files"]:
            for file in change["files"]:
                yield f"  data: {file['said']}: {file['path']}".removesuffix(": ")
                yield from _places(file)
        elif change["field"] == "token shards":
            yield f"  {change['said']}: {len(change['new']):,}"
        else:
            yield f"  {change['field']}: {_value(change['old'])} → {_value(change['new'])}"


def _places(file: dict[str, Any]) -> Iterator[str]:
    for shard in file["shards"][:SHARDS]:
        places = []
        if shard["start"] is not None:
            places.append(f"{shard['unit']} {shard['start']:,} to {shard['stop']:,}")
        if shard["first_row"]:
            places.append(f"from row {shard['first_row']:,}")
        yield f"    shard {shard['number']} of {file['of']}: {', '.join(places)}".rstrip(": ")
    if len(file["shards"]) > SHARDS:
        yield f"    … and {len(file['shards']) - SHARDS:,} more shards"


def _value(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False) if value is not None else "none"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def _cost(about: dict[str, Any]) -> Iterator[str]:
    cost = about["cost"]
    if cost["shards"]:
        size = amount(cost["source_bytes"])
        yield f"to tokenize: {count(cost['shards'], 'shard')}, {size}{_takes(cost, 'tokenize')}"
    if cost["pack_seconds"] != 0:
        yield f"to pack: 1 cache{_takes(cost, 'pack')}"
    more = {"token shards": cost["tokens_bytes"], "the cache": cost["cache_bytes"]}
    said = [f"{name} {amount(size)}" for name, size in more.items() if size]
    unknown = [name for name, size in more.items() if size is None]
    said += [f"{name}: not known, nothing like it was made here yet" for name in unknown]
    yield f"on disk: {', '.join(said)}"


def _takes(cost: dict[str, Any], stage: str) -> str:
    seconds = cost[f"{stage}_seconds"]
    if seconds is None:
        return "; how long that takes was not measured here yet"
    return f"; about {duration(seconds)} of jobs, as measured here"
