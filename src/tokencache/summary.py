"""What a plan's targets came to, as a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tabulate import tabulate

from .files import read_json
from .inventory import CACHE_FILE, RUN_FILE
from .plan import Plan

LOGS = Path("logs")
COLUMNS = [
    "model", "dataset", "max_length", "documents", "tokens", "packing\nefficiency",
    "pack\nseconds", "train\nseconds", "validation loss\nbefore", "validation loss\nafter",
]  # fmt: skip


def table(plan: Plan) -> str:
    """One row a cache that is there, with its run; then what all of them cost."""
    run_of = {run["cache"]: path for path, run in plan.runs.items()}
    rows = [
        _row(plan, path, run_of.get(path))
        for path in plan.caches
        if Path(path, CACHE_FILE).exists()
    ]
    text = tabulate(rows, headers=COLUMNS, intfmt=",", floatfmt=["", "", "", "", "", ".1%", ".1f",
                                                                 ".1f", ".3f", ".3f"])  # fmt: skip
    return f"\n{text}\n\n{_totals(plan)}\n"


def _row(plan: Plan, path: str, run: str | None) -> list[Any]:
    cache = read_json(Path(path, CACHE_FILE))
    splits = cache["splits"].values()
    tokens = sum(split["tokens"] for split in splits)
    rows = sum(split["rows"] for split in splits)
    trained = read_json(Path(run, RUN_FILE)) if run and Path(run, RUN_FILE).exists() else {}
    return [
        cache["model"],
        cache["dataset"],
        cache["settings"]["max_length"],
        sum(counts["documents"] for counts in cache["documents"].values()),
        tokens,
        tokens / (rows * cache["settings"]["max_length"]),
        _seconds("pack", Path(path).relative_to(plan.cache)),
        _seconds("train", Path(run).relative_to(plan.results)) if run else None,
        trained.get("validation_loss_before"),
        trained.get("validation_loss"),
    ]


def _totals(plan: Plan) -> str:
    shards = {key for made in plan.token_sets.values() for keys in made["splits"].values()
              for key in keys}  # fmt: skip
    stages = {name: sum(map(_measured, LOGS.glob(f"{name}/**/*.tsv")))
              for name in ("train_tokenizer", "tokenize", "pack", "train")}  # fmt: skip
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items() if seconds)
    caches = len(plan.caches)
    return f"{len(shards)} token shards for {caches} caches. Job seconds by stage: {spent}"


def _seconds(stage: str, target: Path) -> float | None:
    """How long the job that made a target ran, by Snakemake's own measure."""
    return _measured(LOGS / stage / f"{target}.tsv") or None


def _measured(file: Path) -> float:
    try:
        with open(file, encoding="utf-8") as stream:
            return sum(float(row["s"]) for row in csv.DictReader(stream, delimiter="\t"))
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0
