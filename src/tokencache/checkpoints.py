"""Checkpoints that are whole or not there: one rename each, checked before use."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import UserError
from .files import hash_file, is_running, process_tag, published, read_json, write_json
from .metrics import say

ABOUT = "tokencache.json"
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """counts: tokens and documents seen so far; seconds: trained so far."""

    folder: Path
    step: int
    counts: dict[str, int]
    seconds: float


def wait_for_others(checkpoints: Path) -> None:
    """Return when no other process of this machine trains the run of these checkpoints."""
    said = None
    while (tag := _living(checkpoints)) is not None:
        if tag != said:
            number = tag.split("-")[-2]
            say(f"process {number} trains this run already; waiting until it ends")
            said = tag
        time.sleep(WAIT_SECONDS)


def _living(checkpoints: Path) -> str | None:
    """The tag of another process of this machine that has claimed these checkpoints."""
    tags = (claim.name.removeprefix("claim.") for claim in checkpoints.glob("claim.*"))
    return next((tag for tag in tags if tag != process_tag() and is_running(tag)), None)


@contextmanager
def claimed(checkpoints: Path) -> Iterator[None]:
    """The checkpoints of a run that no other process of this machine trains meanwhile.

    Raises UserError where one does. The claim of a dead process, or of a machine that
    may be gone, holds nobody up: checkpoints of one run are equal, whoever writes them.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    mine = checkpoints / f"claim.{process_tag()}"
    if (tag := _living(checkpoints)) is not None:
        raise UserError(f"process {tag.split('-')[-2]} trains this run; wait until it ends")
    for claim in checkpoints.glob("claim.*"):
        claim.unlink(missing_ok=True)
    mine.touch()
    try:
        yield
    finally:
        mine.unlink(missing_ok=True)


@contextmanager
def saving(checkpoints: str | Path, step: int, about: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes the checkpoint of this step by one rename.

    about: {"key": of the run, "counts", "seconds"}; the checksums of what was
    written are put beside it. Raises UserError on a full disk.
    """
    final = Path(checkpoints, f"checkpoint-{step}")
    if final.exists():
        shutil.rmtree(final)  # damaged, or it would have been gone on from
    with disk_full_said(final), published(final, folder=True) as folder:
        yield folder
        files = {file.name: hash_file(file) for file in folder.iterdir()}
        write_json(folder / ABOUT, about | {"files": files})


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
            "half-written. Free some space and run again, which goes on from the last checkpoint"
        ) from None


def newest(checkpoints: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint of this run that is complete and undamaged, others removed."""
    for leftover in checkpoints.glob(".checkpoint-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in _by_step(checkpoints):
        about = _about(folder)
        if about is not None and about["key"] == key:
            return Checkpoint(folder, _step(folder), about["counts"], about["seconds"])
        say(f"{folder}: damaged or not of this run; removed")
        shutil.rmtree(folder, ignore_errors=True)
    return None


def rotate(checkpoints: str | Path, limit: int) -> None:
    """Remove all but the newest `limit` checkpoints."""
    for folder in _by_step(Path(checkpoints))[limit:]:
        # Renamed first, so that one half removed is not taken for a checkpoint.
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.tmp")), ignore_errors=True)


def _about(folder: Path) -> dict[str, Any] | None:
    """What was said of a checkpoint, if every file is there as it was written."""
    try:
        about = read_json(folder / ABOUT)
        whole = all(hash_file(folder / name) == digest for name, digest in about["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if whole else None


def _by_step(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("checkpoint-[0-9]*"), key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
