"""Who builds a target: a lease that its holder renews, and that others end when it does not.

    PLACE/holder/ID    the lease: what its holder says of itself, and a count that it raises
    PLACE/ID.failed    what went wrong, for those who waited for that holder

Taken by renaming a folder with the new ID in it to `holder`, which fails while there is
another ID in that folder. Given up or ended by removing the ID, which no one else's lease
has. So nothing is asked of the file system but that a rename is atomic. Whether a holder
lives is told by the count alone, over the observer's own clock. Two holders at once, after
a holder was only held up, do no harm: both publish the same bytes under the same key. A holder
that must not go on beside another one asks whether its lease is lost.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from .json_files import read_json, write_json
from .processes import is_running, process_tag
from .publish import make_folder, open_as

BEAT_SECONDS = 1.0  # between two counts of a holder

# Somebody has the lease; or has finished, and the place is gone.
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
GONE = (errno.ENOENT, errno.ESTALE)


class Lease:
    """A lease that this process holds."""

    def __init__(self, place: Path, name: str, counter: int) -> None:
        self._place = place
        self._path = place / "holder" / name
        self._counter = counter
        self._count = 0

    def renew(self) -> None:
        """Raise the count. Where somebody ended the lease nothing happens, or to ours alone."""
        self._count += 1
        # In place, so that a full disk does not end a lease.
        with suppress(OSError), open(self._path, "r+b", buffering=0) as file:
            file.seek(self._counter)
            file.write(_count(self._count))
            os.fsync(file.fileno())

    def is_lost(self) -> bool:
        """Whether somebody ended it: this process was held up for too long."""
        # Listing the folder, as `_names` does, but what can't be read is not taken for gone.
        try:
            return self._path.name not in os.listdir(self._path.parent)
        except OSError as error:
            return error.errno in GONE

    def release(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()

    def failed(self, why: dict[str, Any]) -> None:
        """Tell those who wait for this holder why there is nothing to wait for.

        Where that can't be written, they find out themselves.
        """
        with suppress(OSError, UserError):
            for old in self._place.glob("*.failed"):
                old.unlink(missing_ok=True)
            write_json(self._place / f"{self._path.name}.failed", why)

    def clear(self) -> None:
        """Remove the place: there is nothing to wait for any more."""
        shutil.rmtree(self._place, ignore_errors=True)


def take(place: Path, about: dict[str, Any]) -> Lease | None:
    """Take the lease, unless somebody has it. `about`: what others are told of the holder.

    Raises UserError where nothing can be written.
    """
    name = f"{process_tag()}-{secrets.token_hex(4)}"
    mine = place / f".{name}"
    text = json.dumps(about).encode() + b"\n"
    try:
        make_folder(mine)  # and the place with it
        with open_as(mine), open(mine / name, "xb") as file:
            file.write(text + _count(0))
            file.flush()
            os.fsync(file.fileno())
        os.rename(mine, place / "holder")
    except OSError as error:
        shutil.rmtree(mine, ignore_errors=True)
        if error.errno in TAKEN:
            return None
        raise UserError(f"{place}: nobody can be told that this is built: {error}") from None
    return Lease(place, name, len(text))


@contextmanager
def one_first(
    place: Path, dead_after: float, about: dict[str, Any], wait: Callable[[dict[str, Any]], None]
) -> Iterator[None]:
    """Of the processes that come here at once one goes first, and the others when it is through.

    So they find what it found and wrote down. Where nothing can be written, all go at once.
    `wait`, which sleeps a moment, is called while another one is first, with its `about`.
    """
    try:
        mine = take(place, about)
    except UserError:
        yield
        return
    if mine is None:
        watch = Watch(place, dead_after)
        while (holder := watch.look()) is not None:
            wait(holder)
        yield
        return
    with held(mine):
        yield


@contextmanager
def held(mine: Lease) -> Iterator[None]:
    """A lease that a thread of this process renews, and that is given up at the end."""
    through = threading.Event()
    heart = threading.Thread(target=_renew_until, args=(mine, through), daemon=True)
    heart.start()
    try:
        yield
    finally:
        through.set()
        heart.join()
        mine.release()


def _renew_until(lease: Lease, through: threading.Event) -> None:
    while not through.wait(BEAT_SECONDS):
        lease.renew()


def _count(number: int) -> bytes:
    return b"%012d" % number


class Watch:
    """What one observer sees of a lease.

    A holder whose count stands still for `dead_after` seconds of this process is put
    out, and at once one that is known to be dead.
    """

    def __init__(
        self, place: Path, dead_after: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place, self._dead_after, self._clock = place, dead_after, clock
        self._seen: tuple[str, bytes] | None = None
        self._since = 0.0

    def look(self, end: bool = True) -> dict[str, Any] | None:
        """What the present holder says of itself; None where there is none.

        One that is dead or stands still is put out; with `end` False it is left there.
        """
        for name in _names(self._place / "holder"):
            path = self._place / "holder" / name
            try:
                content = path.read_bytes()
                about = json.loads(content.partition(b"\n")[0])
            except (OSError, ValueError):  # ended just now
                continue
            if (name, content) != self._seen:
                self._seen, self._since = (name, content), self._clock()
            still = self._clock() - self._since > self._dead_after
            if still or is_running(name.rpartition("-")[0]) is False:
                if end:
                    with suppress(OSError):  # to one who may not remove it, it has ended too
                        path.unlink()
                continue
            return about
        return None

    def failure(self) -> dict[str, Any] | None:
        """What the holder that was last seen failed with."""
        if self._seen is None:
            return None
        with suppress(OSError, ValueError):
            return read_json(self._place / f"{self._seen[0]}.failed")
        return None


def _names(holder: Path) -> list[str]:
    # Listing a folder, other than asking for one name, sees what other machines did to it.
    with suppress(OSError):
        return [name for name in os.listdir(holder) if not name.startswith(".")]
    return []
