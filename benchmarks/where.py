"""Where the time of a tokenize job goes.

python benchmarks/where.py job PLAN BATCH             run it; prints the seconds of its steps
python benchmarks/where.py engine PLAN BATCH FOLDER   its engine alone, on texts in memory

Both run in the folder of an experiment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

started = time.perf_counter()


def timed(owner: Any, name: str, seconds: dict[str, float], step: str) -> None:
    """Let a function or method add the time that it takes to a step's."""
    given: Callable = getattr(owner, name)

    def run(*args: Any, **more: Any) -> Any:
        begun = time.perf_counter()
        try:
            return given(*args, **more)
        finally:
            seconds[step] += time.perf_counter() - begun

    setattr(owner, name, run)


def job(plan: str, batch: str) -> dict[str, float]:
    from tokencache import cli
    from tokencache.base import arrow_io, publish
    from tokencache.tokens import engines, write
    from tokencache.workflow import stages  # noqa: F401

    steps = ("start: imports", "engines: loading, comparing on the probe texts",
             "encoding, with samples compared", "waiting for reading", "writing, fsync and rename",
             "the rest")  # fmt: skip
    seconds = dict.fromkeys(steps, 0.0)
    seconds[steps[0]] = time.perf_counter() - started
    timed(engines.Engines, "__init__", seconds, steps[1])
    timed(engines.Engines, "encode", seconds, steps[2])
    write.next = next  # so that it can be replaced
    timed(write, "next", seconds, steps[3])
    timed(arrow_io.Writer, "write", seconds, steps[4])
    timed(arrow_io.Writer, "__exit__", seconds, steps[4])
    timed(publish, "_settle", seconds, steps[4])
    timed(publish, "_rename", seconds, steps[4])
    timed(publish, "_sync", seconds, steps[4])
    if cli.main(["tokenize", "--plan", plan, batch]):
        raise SystemExit(1)
    whole = time.perf_counter() - started
    seconds[steps[-1]] = whole - sum(seconds.values())
    return seconds | {"all of it, but for the end of the process": whole}


def engine(plan: str, batch: str, folder: str) -> dict[str, float]:
    from pathlib import Path

    from tokencache.documents import render
    from tokencache.plan.plan import Plan
    from tokencache.tokens import engines
    from tokencache.workflow import stages

    found = Plan.read(plan)
    texts = []
    for key in found.batches[batch]["tokens"]:
        piece, digest = stages.piece_of(found.shard_of(key))
        recipe = found.data["recipes"][found.data["tokens"][key]["recipe"]]
        texts += [given.texts for given in render.render(recipe, piece, digest)]
    fast = engines.Engines(Path(folder)).current
    begun = time.perf_counter()
    for given in texts:
        fast.encode(given)
    return {f"{fast.name} alone": time.perf_counter() - begun}


if __name__ == "__main__":
    action = {"job": job, "engine": engine}[sys.argv[1]]
    print(json.dumps(action(*sys.argv[2:])))
