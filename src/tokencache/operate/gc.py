"""`tokencache gc`: what no configuration, pin or finished run refers to."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.tables import TIMES, ago, amount, count, iso, show, show_json
from ..config import load
from ..config.load import load as load_config
from ..config.types import size_in_bytes
from ..errors import UserError
from ..plan import inventory
from ..plan.inventory import is_mine
from ..plan.ours import BESIDE
from ..workflow import leftovers
from ..workflow.leftovers import is_spare
from ..workflow.running import running
from .lib.garbage import Garbage, Wanted, garbage, left_of_runs, unfinished
from .lib.on_disk import Cache, caches, runs_by_cache
from .lib.removal import delete, said, trained_by
from .lib.shared import Thing, folder_thing, keys_of

if TYPE_CHECKING:
    from ..plan.plan import Plan

SHOWN = 20  # of what nothing is known of, one line each


def add_words(parser: argparse.ArgumentParser) -> None:
    text = "a configuration whose caches stay (give this once for each; of several files of one, "
    text += "later ones are laid over earlier ones); default: config.yaml"
    parser.add_argument("--configfile", nargs="+", action="append", metavar="FILE", help=text)
    text = "only what was not used for so long: 12h, 30d, 8w"
    parser.add_argument("--older", metavar="AGE", type=_seconds, default=0.0, help=text)
    text = "only until the cache folder is no larger, such as 100GB; the least recently used first"
    parser.add_argument("--keep", metavar="SIZE", type=_bytes, help=text)
    text = "also checkpoints of unfinished trainings of other configurations"
    parser.add_argument("--unfinished", action="store_true", help=text)
    parser.add_argument("--delete", action="store_true", help="do it; without, it is only said")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    """Say what may go, and delete it if asked to; 1 where something could not be deleted.

    Raises UserError for a configuration that can't be followed: what it needs is not known.
    """
    given = arguments.configfile or [["config.yaml"]]
    experiments = [_Experiment.read([Path(file) for file in files]) for files in given]
    cache = _one_cache_folder(experiments)
    inventory.check_open(cache)
    found = caches(cache)
    wanted = _wanted(cache, found, experiments)
    rubbish = garbage(cache, found, wanted, arguments.older, arguments.keep)
    kept = _of_experiments(rubbish, experiments, wanted, arguments)
    chosen = rubbish.chosen
    gone, wrong = _delete(chosen, cache) if arguments.delete else ([], [])
    stays = _stays(rubbish, found, wanted)
    if arguments.json:
        _show_json(chosen, stays, kept, gone, wrong)
    else:
        _show(chosen, stays, rubbish.strange)
        if kept:
            print(f"stays: {said(kept)}, of other configurations; to delete them, too, add "
                  "--unfinished")  # fmt: skip
        if arguments.delete:
            print(f"deleted: {said(gone)}" if gone else "nothing was deleted")
        elif chosen:
            print("nothing was deleted; to do it, add --delete")
        print("".join(f"{line}\n" for line in wrong), end="")
    return int(bool(wrong))


@dataclass(frozen=True)
class _Experiment:
    """A configuration and what it makes.

    folder: where snakemake is run, which its paths start from.
    """

    name: str
    folder: Path
    plan: Plan

    @classmethod
    def read(cls, files: list[Path]) -> _Experiment:
        """As snakemake reads it in the folder where that is run for it."""
        from ..plan.resolve import resolve

        paths = [Path(os.path.abspath(file)) for file in files]
        folder = _where_snakemake_runs(paths[0])
        with contextlib.chdir(folder):
            plan = resolve(load_config(load.read(paths), paths))
        return cls(" + ".join(map(str, files)), folder, plan)

    @property
    def cache(self) -> Path:
        return self.folder / self.plan.cache

    @property
    def results(self) -> Path:
        return self.folder / self.plan.results


def _where_snakemake_runs(file: Path) -> Path:
    """The nearest folder above a configuration in which there are signs of it, or the file's."""
    if file.parent == Path.cwd():  # as other verbs have it
        return file.parent
    for folder in file.parents:
        if any((folder / sign).exists() for sign in ("Snakefile", ".snakemake")):
            return folder
    return file.parent


def _one_cache_folder(experiments: list[_Experiment]) -> Path:
    first = experiments[0]
    for other in experiments[1:]:
        if other.cache.resolve() != first.cache.resolve():
            raise UserError(
                f"{first.name} has its caches in {first.cache}, and {other.name} in "
                f"{other.cache}; name configurations of one cache folder"
            )
    return Path(first.plan.cache) if first.folder == Path.cwd() else first.cache


def _wanted(cache: Path, found: list[Cache], experiments: list[_Experiment]) -> Wanted:
    wanted = Wanted()
    for one in found:
        if one.pinned:
            wanted.caches[one.name] = "pinned"
    for experiment in experiments:
        plan = experiment.plan
        for path in plan.caches:
            wanted.caches.setdefault(os.path.relpath(path, plan.cache), f"of {experiment.name}")
        wanted.runs |= {(experiment.folder / path).resolve() for path in plan.runs}
        wanted.keys.update(plan.shared_keys())
    for results in dict.fromkeys(experiment.results for experiment in experiments):
        for name, runs in runs_by_cache(found, results).items():
            if runs:
                wanted.caches.setdefault(name, "of finished runs")
        for one in found:
            if trained_by(one, results):
                wanted.caches.setdefault(one.name, "of runs that are trained now")
    for workflow in running(cache):
        for name in workflow.caches:
            wanted.caches.setdefault(name, "of workflows that run now")
        wanted.keys |= workflow.keys
        wanted.runs |= workflow.runs
    return wanted


def _of_experiments(
    rubbish: Garbage, experiments: list[_Experiment], wanted: Wanted, arguments: argparse.Namespace
) -> list[Thing]:
    """Add what may go from the results and workflow folders; returns the unfinished runs that stay.

    Where only the cache folder has to become smaller, none of them has to go.
    """
    if arguments.keep is not None:
        return []
    for folder in dict.fromkeys(experiment.folder for experiment in experiments):
        for path in leftovers.of_folder(folder):
            with contextlib.suppress(OSError):  # gone meanwhile
                thing = folder_thing("leftover", str(path), path, path.lstat().st_mtime)
                if thing.mine:
                    rubbish.add(thing)
    stopped = []
    for results in dict.fromkeys(experiment.results for experiment in experiments):
        for thing in left_of_runs(results):
            if thing.mine:
                rubbish.add(thing)
        stopped += [thing for thing in unfinished(results, wanted) if thing.mine]
    if not arguments.unfinished:
        return stopped
    for thing in stopped:
        if time.time() - thing.time >= arguments.older:
            rubbish.add(thing)
    return []


def _delete(chosen: list[Thing], cache: Path) -> tuple[list[Thing], list[str]]:
    """Delete what may still go: it takes a while to find out, and a workflow may have begun."""
    workflows = running(cache)
    named = {name for workflow in workflows for name in workflow.caches}
    runs = {run for workflow in workflows for run in workflow.runs}
    named |= {one.name for one in caches(cache) if one.pinned}
    doomed = [t for t in chosen if t.kind == "cache" and t.key not in named]
    gone, wrong = delete(doomed)
    try:
        # Also of caches that somebody published meanwhile, or that could not be deleted.
        needed = {key for one in caches(cache) for key in keys_of(one)}
        needed.update(key for workflow in running(cache) for key in workflow.keys)
    except UserError as error:
        return gone, [*wrong, f"nothing but caches was deleted: {error}"]
    others = [t for t in chosen if t.kind != "cache" and t.key not in needed]
    more, failed = delete(t for t in others if _may_go(t, runs))
    return gone + more, wrong + failed


def _may_go(thing: Thing, runs: set[Path]) -> bool:
    """Of what stands beside a target: whether still nobody works with it."""
    path = thing.paths[0]
    named = BESIDE.fullmatch(path.name)
    return not named or (path.with_name(named["target"]).resolve() not in runs and is_spare(path))


def _stays(rubbish: Garbage, found: list[Cache], wanted: Wanted) -> dict[str, str]:
    """Why each cache stays that does, by name."""
    go = {thing.key for thing in rubbish.chosen if thing.kind == "cache"}
    return {
        one.name: wanted.caches.get(one.name) or _why(one, rubbish)
        for one in found
        if one.name not in go
    }


def _why(one: Cache, rubbish: Garbage) -> str:
    if str(one.folder) in rubbish.strange:
        return "not known to be made by tokencache"
    return "not asked for by --older and --keep" if is_mine(one.folder) else "of other users"


def _show(chosen: list[Thing], stays: dict[str, str], strange: dict[str, str]) -> None:
    rows = [_row([thing], thing.key) for thing in chosen if thing.kind != "token shard"]
    if shards := [thing for thing in chosen if thing.kind == "token shard"]:
        rows.append(_row(shards, f"({len(shards):,})"))
    if rows:
        show(("may go", "", "size", "last used"), rows, right=("size", "last used"))
        print()
    for reason, number in Counter(stays.values()).items():
        print(f"stays: {count(number, 'cache')} {reason}")
    for path, why in list(strange.items())[:SHOWN]:
        print(f"stays: {path}: {why}")
    if len(strange) > SHOWN:
        print(f"stays: {len(strange) - SHOWN:,} more that have no record of tokencache's")
    frees = sum(thing.bytes for thing in chosen)
    print(f"frees {amount(frees)}: {said(chosen)}" if chosen else "nothing may go")


def _row(things: list[Thing], name: str) -> list[str]:
    size, newest = sum(thing.bytes for thing in things), max(thing.time for thing in things)
    return [things[0].kind, name, amount(size), ago(newest)]


def _show_json(
    chosen: list[Thing],
    stays: dict[str, str],
    kept: list[Thing],
    gone: list[Thing],
    wrong: list[str],
) -> None:
    show_json(
        {
            "may_go": [
                {
                    "kind": thing.kind,
                    "name": thing.key,
                    "paths": list(map(str, thing.paths)),
                    "bytes": thing.bytes,
                    "last_used": iso(thing.time),
                }
                for thing in chosen
            ],
            "bytes": sum(thing.bytes for thing in chosen),
            "stays": stays,
            "unfinished": [str(thing.paths[0]) for thing in kept],
            "deleted": len(gone),
            "failed": wrong,
        }
    )


def _seconds(text: str) -> float:
    units = dict(TIMES) | {"w": 7 * 86400}
    if match := re.fullmatch(r"([0-9.]+) ?(min|h|d|w)", text):
        with contextlib.suppress(ValueError):
            return float(match[1]) * units[match[2]]
    raise argparse.ArgumentTypeError(f"{text!r} is no age; give 90min, 12h, 30d or 8w")


def _bytes(text: str) -> int:
    found = size_in_bytes(text)
    if not isinstance(found, int):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 500MB, 100GB or 1TB")
    return found
