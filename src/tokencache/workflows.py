"""Which workflows run now, and what they work on: told in the cache folder that they share.

    CACHE/.workflow-TAG.json    what the plan of the snakemake process TAG names

So nobody removes what somebody else's workflow is about to read, from wherever it is run. One
whose process is dead counts no longer, and one that can't be asked counts for a week.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import ABANDONED_SECONDS, is_running, process_tag, read_json, write_json
from .plan import Plan

PREFIX = ".workflow-"


@dataclass(frozen=True)
class Running:
    """A workflow that runs, and what it works on.

    who: for people. caches: by name, MODEL/DATASET/MAX_LENGTH-KEY. keys: of token shards,
    tokenizers and fetched data. runs: their folders, finished or not.
    """

    who: str
    caches: frozenset[str]
    keys: frozenset[str]
    runs: frozenset[Path]


def announce(plan: Plan) -> None:
    """Tell others what this process's workflow works on, where the cache folder lets it."""
    about = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "folder": os.getcwd(),
        "caches": [os.path.relpath(path, plan.cache) for path in plan.caches],
        "keys": plan.shared_keys(),
        "runs": [os.path.realpath(path) for path in plan.runs],
    }
    with suppress(OSError, UserError):
        for file in Path(plan.cache).glob(f"{PREFIX}*.json"):
            if is_over(file):
                file.unlink(missing_ok=True)
        write_json(_file(plan), about)


def withdraw(plan: Plan) -> None:
    """The workflow of this process has ended."""
    with suppress(OSError):
        _file(plan).unlink()


def running(cache: str | Path) -> list[Running]:
    """The workflows that work on a cache folder now, as far as one can tell.

    Raises UserError where one does not say what it works on.
    """
    found = []
    for file in sorted(Path(cache).glob(f"{PREFIX}*.json")):
        try:
            if not is_over(file):
                found.append(_running(read_json(file)))
        except FileNotFoundError:  # ended just now
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} can't be read ({error}), so nobody knows what that workflow needs; "
                "remove it if that workflow has ended"
            ) from None
    return found


def _running(about: dict[str, Any]) -> Running:
    who = f"process {about['pid']} on {about['host']} in {about['folder']} since {about['since']}"
    runs = frozenset(map(Path, about.get("runs", ())))
    return Running(who, frozenset(about["caches"]), frozenset(about["keys"]), runs)


def _file(plan: Plan) -> Path:
    return Path(plan.cache, f"{PREFIX}{process_tag()}.json")


def is_over(file: Path) -> bool:
    """Whether the workflow that said this has ended, or must have. Raises OSError."""
    alive = is_running(file.stem.removeprefix(PREFIX))
    if alive is None:
        return time.time() - file.stat().st_mtime > ABANDONED_SECONDS
    return not alive
