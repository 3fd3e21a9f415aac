"""What those who use a cache leave in its folder, beside what it is made of."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

LAST_USED = ".last_used"  # its time says it
PINNED = ".pinned"
MARKS = (LAST_USED, PINNED)


def mark_used(folder: Path) -> None:
    """Say that a cache is read now; where that can't be written down, nobody needs to know."""
    with suppress(OSError):
        _leave(folder, LAST_USED)


def last_used(folder: Path) -> float | None:
    """Seconds since 1970; None for a cache that neither a training nor `load` has opened."""
    with suppress(OSError):
        return (folder / LAST_USED).stat().st_mtime
    return None


def pin(folder: Path) -> None:
    """Keep a cache from being deleted by `gc` and `clear`. Raises OSError."""
    _leave(folder, PINNED)


def unpin(folder: Path) -> None:
    (folder / PINNED).unlink(missing_ok=True)


def is_pinned(folder: Path) -> bool:
    return os.path.exists(folder / PINNED)  # pathlib's own raises where one may not look


def _leave(folder: Path, name: str) -> None:
    file = folder / name
    file.touch()
    if folder.stat().st_mode & stat.S_IWGRP:  # a group shares it: the next one may touch it too
        file.chmod(0o664)
