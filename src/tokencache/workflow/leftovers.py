"""What killed jobs and workflows left, and nobody needs. A workflow's start takes what is left of
its own targets and in its own folder; `tokencache gc` takes the rest."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..base import lease
from ..base.json_files import read_json
from ..base.processes import is_running
from ..base.publish import (
    ABANDONED_SECONDS,
    SUPERSEDED_SECONDS,
    is_left,
    is_still,
    matches,
    remove_dead,
    remove_if_dead,
)
from ..plan.ours import why_not_beside
from ..plan.plan import (
    PLANNING,
    PLANS,
    WORK,
    WORKFLOW,
    Plan,
    building_path,
    checkpoints_path,
    parts_path,
    progress_path,
)
from .images import FOLDER as IMAGES

PLANS_KEPT = 20
PLAN_SECONDS = 7 * 86400  # a workflow that runs says every minute that its plan is needed
PLAN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]+")


def take(plan: Plan) -> None:
    """Remove what is left of a plan's targets, and of the plans that were before it."""
    for target in [*plan.caches, *plan.runs, *plan.tokenizers, *plan.fetches]:
        remove_dead(Path(target))
    for cache in plan.caches:
        _take_beside(Path(cache), Path(parts_path(cache)))
    for run in plan.runs:
        _take_beside(Path(run), checkpoints_path(run))
    for left in matches(Path(plan.cache), "tokens/*/*/.*.tmp", "*/*/.*.parts/.*.tmp"):
        remove_if_dead(left)
    for left in of_folder(Path()):
        if plan.data["id"] not in (left.name, left.stem):
            _remove(left)


def _take_beside(target: Path, beside: Path) -> None:
    """What nobody needs when a target is there, unless somebody is about to remove it."""
    if _is_there(beside) and target.exists() and is_spare(beside):
        _remove(beside)
        place = building_path(target)
        if _is_there(place) and is_spare(place):
            _remove(place)


def _is_there(path: Path) -> bool:
    """Asked first, for it costs next to nothing, and mostly there is nothing."""
    return os.path.lexists(path)


def is_spare(beside: Path) -> bool:
    """Of what stands beside a target that is there, or that nothing refers to: whether it is ours,
    nobody works with it, and nobody did for an hour."""
    target = beside.with_name(beside.stem.removeprefix("."))
    return (
        why_not_beside(beside) is None
        and holder_of(target) is None
        and is_still(beside, SUPERSEDED_SECONDS)
    )


def holder_of(target: Path) -> dict[str, Any] | None:
    """Who says that he makes a target, and said so again within the hour."""
    place = building_path(target)
    if is_still(place, SUPERSEDED_SECONDS):
        return None
    return lease.Watch(place, float("inf")).look(end=False)


def of_folder(folder: Path) -> Iterator[Path]:
    """What is left in the folder of a workflow: of plans that are through, and their marks."""
    plans = folder / PLANS
    for old in matches(plans, "*.json")[:-PLANS_KEPT]:
        with suppress(FileNotFoundError):  # another run removes it
            if PLAN_ID.fullmatch(old.stem) and time.time() - old.stat().st_mtime > PLAN_SECONDS:
                yield old
    temporaries = matches(plans, ".*.tmp") + matches(folder / IMAGES, ".*.tmp")
    yield from (left for left in temporaries if is_left(left))
    found = matches(folder / WORK, "done/*", "progress/*")
    over = {path.name: _is_over(folder, path.name) for path in found if path.is_dir()}
    yield from (path for path in found if over.get(path.name))
    # Who was killed before he had the lease.
    for left in matches(folder / PLANNING, ".*"):
        if is_running(left.name[1:].rpartition("-")[0]) is False or is_still(
            left, ABANDONED_SECONDS
        ):
            yield left


def _is_over(folder: Path, plan: str) -> bool:
    """Whether the marks of a plan are of no more use: its workflow has ended, or must have."""
    if not PLAN_ID.fullmatch(plan):
        return False
    if not (folder / PLANS / f"{plan}.json").exists():
        return True
    running = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        running = is_running(read_json(folder / progress_path(plan, *WORKFLOW))["process"])
    if running:
        return False
    # Jobs that a cluster still has say how far they are.
    seconds = SUPERSEDED_SECONDS if running is False else ABANDONED_SECONDS
    places = (folder / WORK / kind / plan for kind in ("done", "progress"))
    return all(is_still(place, seconds) for place in places if place.exists())


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        with suppress(OSError):
            left.unlink()
