"""Which workflows run now, and what they work on: told in the cache folder that they share.

    CACHE/.workflow-TAG.json    what the plan of the snakemake process TAG names

So nobody removes what somebody else's workflow is about to read, from wherever it is run. One
whose process is dead counts no longer. Where that can't be seen from here, one counts until its
file was not touched for a day, which it is every minute.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.json_files import read_json, write_json
from ..base.processes import TAG, is_running, process_tag
from ..base.publish import ABANDONED_SECONDS, matches
from ..errors import UserError
from ..plan.plan import Plan

PREFIX = ".workflow-"
# The tag of an earlier version has a host, a namespace and two numbers.
RECORD = re.compile(rf"{re.escape(PREFIX)}({TAG.pattern}|.+-[0-9]+-[0-9]+-[0-9]+)\.json")
BEAT_SECONDS = 60.0
SILENT_SECONDS = 86400.0  # of one that can't be asked


@dataclass(frozen=True)
class Running:
    """A workflow that runs, and what it works on.

    who: for people. file: where it says so. caches: by name, MODEL/DATASET/MAX_LENGTH-KEY.
    keys: of token shards, tokenizers and fetched data. runs: their folders, finished or not.
    """

    who: str
    file: Path
    caches: frozenset[str]
    keys: frozenset[str]
    runs: frozenset[Path]


class Announcement:
    """What this process's workflow works on, told to others from `start` to `end`, where the cache
    folder lets it. The plan file is kept from being taken for an old one, too."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._file = Path(plan.cache, f"{PREFIX}{process_tag()}.json")
        self._through = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        plan = self._plan
        about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "folder": os.getcwd(),
            "caches": [os.path.relpath(path, plan.cache) for path in plan.caches],
            "keys": plan.shared_keys(),
            "runs": [os.path.realpath(path) for path in plan.runs],
        }
        for file in ended(plan.cache):
            with suppress(OSError):  # it goes just now, or is another user's
                file.unlink()
        try:
            write_json(self._file, about)
        except (OSError, UserError) as error:
            if os.access(plan.cache, os.W_OK):  # who only reads there can't tell others anything
                print(
                    "tokencache: other workflows can't see that this one runs, and may delete "
                    f"what it needs: {error}",
                    file=sys.stderr,
                )
        self._thread.start()

    def end(self) -> None:
        """The workflow of this process has ended."""
        self._through.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):
            self._file.unlink()

    def _go_on(self) -> None:
        while not self._through.wait(BEAT_SECONDS):
            for path in (self._file, self._plan.path):
                with suppress(OSError):
                    os.utime(path)


def running(cache: str | Path) -> list[Running]:
    """The workflows that work on a cache folder now, as far as one can tell.

    Raises UserError where one does not say what it works on.
    """
    found = []
    for file in _records(cache):
        try:
            if not is_over(file):
                found.append(_running(file, read_json(file)))
        except FileNotFoundError:  # ended just now
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} can't be read ({error}), so nobody knows what that workflow needs; "
                "remove that file if the workflow has ended"
            ) from None
    return found


def ended(cache: str | Path) -> Iterator[Path]:
    """The records of workflows that have ended, or must have."""
    for file in _records(cache):
        with suppress(OSError, ValueError, TypeError):  # it goes just now, or is no record
            if is_over(file) and {"caches", "keys"} <= set(read_json(file)):
                yield file


def _records(cache: str | Path) -> list[Path]:
    """The files that are called as a workflow's record."""
    return [
        file
        for file in matches(Path(cache), f"{PREFIX}*.json")
        if RECORD.fullmatch(file.name) and file.is_file() and not file.is_symlink()
    ]


def _running(file: Path, about: dict[str, Any]) -> Running:
    who = f"process {about['pid']} on {about['host']} in {about['folder']} since {about['since']}"
    runs = frozenset(map(Path, about.get("runs", ())))
    return Running(who, file, frozenset(about["caches"]), frozenset(about["keys"]), runs)


def is_over(file: Path) -> bool:
    """Whether the workflow that said this has ended, or must have. Raises OSError."""
    tag = file.stem.removeprefix(PREFIX)
    alive = is_running(tag)
    if alive is None:
        # One of an earlier version never says that it goes on.
        seconds = SILENT_SECONDS if TAG.fullmatch(tag) else ABANDONED_SECONDS
        return time.time() - file.stat().st_mtime > seconds
    return not alive
