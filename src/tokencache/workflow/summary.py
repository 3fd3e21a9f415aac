"""What a plan's targets came to, as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..base.json_files import read_json
from ..base.records import CACHE_FILE, RUN_FILE
from ..plan.costs import seconds_in
from ..plan.inventory import brief
from ..plan.plan import LOGS, Plan
from . import slurm

NODE = re.compile(r"tokencache \S+ on (\S+)\n")  # what a job says first
WARNINGS = 10  # that are shown
COLUMNS = [
    "model", "dataset", "max_length", "documents", "tokens", "packing\nefficiency",
    "pack\nseconds", "train\nseconds", "validation loss\nbefore", "validation loss\nafter",
]  # fmt: skip


def table(plan: Plan) -> str:
    """One row a cache that is there, with its run; then what all of them cost."""
    run_of = {run["cache"]: path for path, run in plan.runs.items()}
    rows = [
        _row_or_damage(plan, path, run_of.get(path))
        for path in plan.caches
        if Path(path, CACHE_FILE).exists()
    ]
    text = tabulate(rows, headers=COLUMNS, intfmt=",", floatfmt=["", "", "", "", "", ".1%", ".1f",
                                                                 ".1f", ".3f", ".3f"])  # fmt: skip
    return f"\n{text}\n\n{_totals(plan)}\n{_warnings(plan)}{_nodes(plan)}"


def _row_or_damage(plan: Plan, path: str, run: str | None) -> list[Any]:
    try:
        return _row(plan, path, run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        cache = plan.caches[path]
        return [cache["model"], cache["dataset"], cache["max_length"], "damaged"]


def _row(plan: Plan, path: str, run: str | None) -> list[Any]:
    cache = brief(path)
    splits = cache["splits"].values()
    tokens = sum(split["tokens"] for split in splits)
    rows = sum(split["rows"] for split in splits)
    sides = 2 if "source" in cache["recipe"] else 1  # of pairs, each has max_length to fill
    trained = read_json(Path(run, RUN_FILE)) if run and Path(run, RUN_FILE).exists() else {}
    return [
        cache["model"],
        cache["dataset"],
        cache["settings"]["max_length"],
        sum(counts["documents"] for counts in cache["documents"].values()),
        tokens,
        tokens / (rows * sides * cache["settings"]["max_length"]),
        _packing(plan, path) or None,
        (_job("train", Path(run).relative_to(plan.results)) or None) if run else None,
        trained.get("validation_loss_before"),
        trained.get("validation_loss"),
    ]


def _totals(plan: Plan) -> str:
    shards = {key for made in plan.token_sets.values() for keys in made["splits"].values()
              for key in keys}  # fmt: skip
    spent = {
        "train tokenizers": [_job("train_tokenizer", Path(f).name) for f in plan.tokenizers],
        "tokenize": [seconds_in(file) for d in {c["dataset"] for c in plan.caches.values()}
                     for file in LOGS.glob(f"tokenize/{d}-*.tsv")],
        "pack": [_packing(plan, path) for path in plan.caches],
        "train": [_job("train", Path(path).relative_to(plan.results)) for path in plan.runs],
    }  # fmt: skip
    said = ", ".join(f"{stage} {sum(seconds):.1f}" for stage, seconds in spent.items())
    return f"{len(shards)} token shards for {len(plan.caches)} caches. Seconds of jobs: {said}"


def _warnings(plan: Plan) -> str:
    """What the data reports of caches warn of; the same words once for all caches."""
    from ..caches import report

    found: dict[str, list[str]] = {}
    for path, cache in plan.caches.items():
        for warning in report.lines(report.read(path) or {"findings": []}, "warning"):
            name = f"{cache['model']} {cache['dataset']} {cache['max_length']}"
            found.setdefault(warning, []).append(name)
    lines = [f"{', '.join(caches)}: {warning}" for warning, caches in found.items()]
    if len(lines) > WARNINGS:
        lines[WARNINGS:] = [f"… and {len(lines) - WARNINGS} more"]
    text = "".join(f"\n{line}" for line in lines)
    return f"Look at the data: report.html in the folder of each cache.{text}\n"


def _nodes(plan: Plan) -> str:
    """Which job ran on which node; nothing where all of them ran on this machine."""
    found: dict[tuple[str, str], list[str]] = {}
    for stage, target in _jobs(plan):
        if node := _node(LOGS / stage / f"{target}.log"):
            found.setdefault((node, stage), []).append(str(target))
    if {node for node, _ in found} <= {slurm.nodes()}:
        return ""
    rows = [(node, stage, job) for (node, stage), jobs in sorted(found.items()) for job in jobs]
    return f"\n{tabulate(rows, headers=['node', 'stage', 'job'])}\n"


def _jobs(plan: Plan) -> Iterator[tuple[str, str | Path]]:
    """Stage and target, as their logs are called."""
    for folder, tokenizer in plan.tokenizers.items():
        trained = "training" in tokenizer
        yield "train_tokenizer" if trained else "materialize_tokenizer", Path(folder).name
    for folder in plan.fetches:
        yield "fetch", Path(folder).name
    for batch in plan.batches:
        yield "tokenize", batch
    for path in plan.caches:
        for part in plan.parts_of(path):
            yield "pack_part", Path(part).relative_to(plan.cache)
        yield "pack", Path(path).relative_to(plan.cache)
    for path in plan.runs:
        yield "train", Path(path).relative_to(plan.results)


def _node(log: Path) -> str | None:
    try:
        with open(log, encoding="utf-8", errors="replace") as stream:
            found = NODE.fullmatch(stream.readline())
    except FileNotFoundError:
        return None
    return found[1] if found else None


def _packing(plan: Plan, cache: str) -> float:
    """Seconds of all jobs that made a cache."""
    jobs = [("pack_part", part) for part in plan.parts_of(cache)] + [("pack", cache)]
    return sum(_job(stage, Path(path).relative_to(plan.cache)) for stage, path in jobs)


def _job(stage: str, target: str | Path) -> float:
    """Seconds that the job that made a target ran, by Snakemake's own measure; 0 if unknown."""
    return seconds_in(LOGS / stage / f"{target}.tsv")
