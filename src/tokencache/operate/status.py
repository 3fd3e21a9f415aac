"""`tokencache status`: how far the workflow is, from the plan, the disk and the jobs' own words."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from ..base import progress, tables
from ..plan.plan import PLANS, Plan
from .lib.overview import Overview

LOOK_SECONDS = 2.0
NONE = "-"
COUNTS = ["done", "running", "stalled", "failed", "to do"]
COLOURS = {"running": "green", "stalled": "yellow", "failed": "red"}


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", help="default: the newest plan")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="go on until the workflow ends")
    how.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int | None:
    """Print what there is to say, once or live. Raises UserError where there is no plan."""
    overview = Overview(_plan(arguments))
    if arguments.json:
        tables.show_json(overview.look())
        return None
    out = tables.console()
    if not (arguments.watch and out.is_terminal):
        out.print(shown(overview.look()))
        return None
    with Live(console=out, auto_refresh=False) as live:
        while True:
            found = overview.look()
            live.update(shown(found), refresh=True)
            going = [found["workflow"], *found["jobs"]]
            if not any(one["state"] == "running" for one in going):
                return None
            time.sleep(LOOK_SECONDS)
            if not arguments.plan and Path(overview.plan.path) != max(PLANS.glob("*.json")):
                overview = Overview(Plan.newest())


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan.read(arguments.plan) if arguments.plan else Plan.newest()


def shown(found: dict[str, Any]) -> Group:
    """What `Overview.look` found, for people."""
    parts: list[Any] = [Text(_headline(found))]
    rows = [
        [name, *(f"{number:,}" for number in counts.values())]
        for name, counts in found["stages"].items()
    ]
    parts.append(tables.table(["stage", *COUNTS], rows, COUNTS))
    if found["jobs"]:
        names = ["job", "node", "state", "done", "%", "rate", "elapsed", "ETA"]
        parts.append(
            tables.table(names, map(_job_row, found["jobs"]), ["done", "%", "elapsed", "ETA"])
        )
    for job in found["jobs"]:
        if job["why"]:
            parts.append(Text(f"{job['name']}: {job['state']}: {job['why']}"))
    return Group(*parts)


def _headline(found: dict[str, Any]) -> str:
    workflow, shards = found["workflow"], found["token_shards"]
    said = {
        "running": f"snakemake runs on {workflow['node']}",
        "stalled": f"snakemake ran on {workflow['node']}: {workflow['why']}",
        "ended": "no snakemake runs it",
    }[workflow["state"]]
    there = f"{shards['there']:,} of {shards['total']:,} token shards are there"
    return f"plan {found['plan']}: {said}; {there}"


def _job_row(job: dict[str, Any]) -> list[str | Text]:
    state = Text(job["state"], style=COLOURS[job["state"]])
    name, found = job["name"], job["progress"]
    if found is None:
        return [name, job["node"], state, NONE, NONE, NONE, NONE, NONE]
    eta = NONE if found["eta"] is None else progress.duration(found["eta"])
    return [
        name, job["node"], state, progress.done(found), progress.share(found).removesuffix(" %"),
        ", ".join(progress.rates(found)) or NONE, progress.duration(found["elapsed"]), eta,
    ]  # fmt: skip
