"""Checkpoints that are whole or not there, and which of several processes writes them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..base import lease
from ..base.hashing import hash_file
from ..base.json_files import read_json, write_json
from ..base.publish import published, remove
from ..errors import UserError
from ..plan.plan import building_path
from .metrics import say

ABOUT = "tokencache.json"
SAID = ("counts", "seconds")
WAIT_SECONDS = 1.0
DEAD_AFTER = 60.0  # seconds without a sign of life after which a training is gone on with


@dataclass(frozen=True)
class Checkpoint:
    """counts: tokens and documents seen so far, as of the last record; seconds: trained so far.

    unlogged: of each rank, what it has seen since that record.
    """

    folder: Path
    step: int
    counts: dict[str, int]
    seconds: float
    unlogged: list[dict[str, Any]]


class Turn:
    """Whose turn it is to train a run: one process at a time, wherever the others are.

    Told by a lease beside the run `out`. A process that gives no sign of life for
    DEAD_AFTER seconds loses it: another one goes on from the last checkpoint, and the
    first, should it have been held up only, must leave the checkpoints alone.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._place = out, building_path(out)
        self._watch = lease.Watch(self._place, DEAD_AFTER)
        self._said: dict[str, Any] | None = None
        self._lease: lease.Lease | None = None

    def is_free(self) -> bool:
        """Whether nobody trains the run; who does is said once."""
        holder = self._watch.look()
        if holder is not None and holder != self._said:
            say(
                f"process {holder['pid']} trains this run already, on {holder['host']}; "
                "waiting until it ends"
            )
            self._said = holder
        return holder is None

    def take(self) -> bool:
        """Take the turn if it is free. Raises UserError where nothing can be written."""
        if self.is_free():
            about = {"host": socket.gethostname(), "pid": os.getpid()}
            self._lease = lease.take(self._place, about)
        return self._lease is not None

    @contextmanager
    def held(self) -> Iterator[None]:
        """From here on others wait. What fails because the turn was lost is explained so."""
        with lease.held(self._lease):
            try:
                yield
            except (OSError, RuntimeError, SafetensorError):
                self.check()
                raise

    def check(self) -> None:
        """Raises UserError where another process may have the turn by now."""
        if self._lease.is_lost():
            raise UserError(
                f"{self._out}: this process gave no sign of life for more than {DEAD_AFTER:g} "
                "seconds, so another one may train the run now. This one ends and leaves it "
                "alone; run again, which waits for the other and makes what is still missing"
            )

    def finish(self, checkpoints: Path) -> None:
        """Remove the checkpoints of the run, which is there, unless another process has them."""
        if not self._lease.is_lost():
            with suppress(OSError, UserError):  # what can't be removed, a later run takes
                remove(checkpoints)
            self._lease.clear()


def wait_for_others(out: Path) -> None:
    """Return when no other process trains this run, whatever became of it."""
    turn = Turn(out)
    while not turn.is_free():
        time.sleep(WAIT_SECONDS)


@contextmanager
def saving(checkpoints: str | Path, step: int, about: dict[str, Any], turn: Turn) -> Iterator[Path]:
    """A temporary folder that becomes the checkpoint of this step by one rename.

    about: {"key": of the run, "counts", "seconds", "unlogged"}; the checksums of what was
    written are put beside it. Raises UserError on a full disk, and where the turn to
    train was lost.
    """
    final = folder_of(checkpoints, step)
    turn.check()
    with suppress(FileNotFoundError):
        shutil.rmtree(final)  # damaged, or it would have been gone on from
    with disk_full_said(final), published(final, folder=True) as folder:
        yield folder
        files = {file.name: hash_file(file) for file in folder.iterdir()}
        write_json(folder / ABOUT, about | {"files": files})
        turn.check()


@contextmanager
def disk_full_said(final: Path) -> Iterator[None]:
    """A full disk as a UserError: neither torch nor safetensors says it with an OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not re.search(r"os error (28|122)\b|inline_container|PytorchStreamWriter", str(error)):
            raise
        raise UserError(
            f"{final}: this can't be written, the disk is probably full; nothing was left "
            "half-written. Free some space and run again, which goes on from the last checkpoint; "
            "`tokencache gc` says what no configuration needs any more"
        ) from None


def newest(checkpoints: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint of this run that is complete and undamaged, others removed."""
    for leftover in checkpoints.glob(".checkpoint-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in _by_step(checkpoints):
        about = _about(folder)
        if about is not None and about["key"] == key:
            said = (about[name] for name in SAID)
            # One of an earlier version was made together with a record.
            return Checkpoint(folder, _step(folder), *said, about.get("unlogged", []))
        say(f"{folder}: damaged or not of this run; removed")
        shutil.rmtree(folder, ignore_errors=True)
    return None


def rotate(checkpoints: str | Path, limit: int, losses: dict[int, float] | None = None) -> None:
    """Remove all but the newest `limit` checkpoints and the best, by the losses of some steps."""
    there = _by_step(Path(checkpoints))
    found = best([_step(folder) for folder in there], losses or {})
    for folder in there[limit:]:
        if _step(folder) == found:
            continue
        # Renamed first, so that one half removed is not taken for a checkpoint.
        removed = folder.with_name(f".{folder.name}.tmp")
        with suppress(FileNotFoundError):  # another process removes the same ones
            folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def best(steps: Iterable[int], losses: dict[int, float]) -> int | None:
    """The step with the lowest validation loss, the first of them; None where none has one."""
    return min((step for step in sorted(steps) if step in losses), key=losses.get, default=None)


def folder_of(checkpoints: str | Path, step: int) -> Path:
    return Path(checkpoints, f"checkpoint-{step}")


def whole(checkpoints: str | Path, step: int) -> Path:
    """The folder of a checkpoint. Raises UserError where it is not whole any more."""
    folder = folder_of(checkpoints, step)
    if _about(folder) is None:
        raise UserError(f"{folder}: the best weights are missing or damaged; remove {checkpoints} "
                        "and run again, which trains from the start")  # fmt: skip
    return folder


def _about(folder: Path) -> dict[str, Any] | None:
    """What was said of a checkpoint, if every file is there as it was written."""
    try:
        about = read_json(folder / ABOUT)
        files = about["files"].items()
        whole = all(hash_file(folder / name) == digest for name, digest in files)
        complete = whole and all(name in about for name in SAID)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if complete else None


def _by_step(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("checkpoint-[0-9]*"), key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
