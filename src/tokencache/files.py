"""Files that appear whole or not at all: write beside, fsync, rename once."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from blake3 import blake3

from .errors import UserError

KEY_DIGITS = 32
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def key_of(made_of: Any) -> str:
    """The key of what decides some bytes: BLAKE3 of its canonical JSON, 128 bits in hex."""
    text = json.dumps(made_of, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_DIGITS]


def hash_file(path: str | Path) -> str:
    """BLAKE3 of a file's bytes, in hex."""
    return blake3().update_mmap(path).hexdigest()


def read_json(path: str | Path) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


@contextmanager
def published(final: str | Path, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `final` that becomes `final` by one rename at the end.

    On any error the temporary is removed and `final` is as it was. Where `final`
    is a folder that another process published meanwhile, that one stays: equal
    keys mean equal bytes. Raises UserError on a full disk.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(final)
    prefix = f".{final.name}.{process_tag()}."
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=final.parent))
    target = temporary / final.name
    try:
        if folder:
            target.mkdir()
        yield target
        _settle(target)
        _rename(target, final)
        _sync(final.parent)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"{final}: the disk is full; nothing was left half-written. Free some space "
                "(`snakemake --delete-all-output` clears what the present config made), run again"
            ) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def process_tag() -> str:
    """This process, told from every other one that may write to the same disk."""
    return f"{_place()}-{os.getpid()}-{psutil.Process().create_time():.0f}"


def is_running(tag: str) -> bool | None:
    """Whether the process of a tag still runs; None of one that can't be seen from here."""
    place, pid, started = tag.rsplit("-", 2)
    if place != _place():
        return None
    try:
        process = psutil.Process(int(pid))
        # The start is known to a second: nothing else has had that number within it.
        same = abs(process.create_time() - float(started)) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _place() -> str:
    """The machine, and in a container the numbering of its processes too."""
    numbering = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{numbering.stat().st_ino if numbering.exists() else 0}"


def _remove_dead(final: Path) -> None:
    """Remove what killed processes left of the same target."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
        remove_if_dead(left)


def remove_if_dead(left: Path) -> None:
    """Remove a temporary of `published` whose process is known to be dead."""
    parts = re.fullmatch(r"(.+)-(\d+)-(\d+)\.[^.]+\.tmp", left.name)
    if parts and parts[1].endswith(f".{_place()}"):
        tag = f"{_place()}-{parts[2]}-{parts[3]}"
        if is_running(tag) is False:
            shutil.rmtree(left, ignore_errors=True)


def _rename(source: Path, final: Path) -> None:
    try:
        os.rename(source, final)
    except OSError:
        # A folder can only be renamed over an empty one: somebody was first.
        if not (source.is_dir() and final.is_dir() and any(final.iterdir())):
            raise


def _settle(path: Path) -> None:
    """Everything on disk, and open to whom the umask opens new files: some libraries close it."""
    umask = os.umask(0)
    os.umask(umask)
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if entry.is_file():
            entry.chmod(0o666 & ~umask)
        _sync(entry)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Publish a JSON file: sorted keys, one line an entry, the same bytes for the same value."""
    with published(path) as temporary:
        temporary.write_text(
            json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
