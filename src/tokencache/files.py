"""Files that appear whole or not at all: write beside, fsync, rename once."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from blake3 import blake3

from .errors import UserError

KEY_DIGITS = 32
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

# What nobody wrote to for so long was left by a job that is dead, wherever it ran.
ABANDONED_SECONDS = 7 * 86400
# The same where the target is there: then a job that only stood still loses nothing.
SUPERSEDED_SECONDS = 3600
# Snakemake sets the time of this file in a folder that a job made or found.
TIMESTAMP = ".snakemake_timestamp"


def key_of(made_of: Any) -> str:
    """The key of what decides some bytes: BLAKE3 of its canonical JSON, 128 bits in hex."""
    text = json.dumps(made_of, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_DIGITS]


def link(source: Path, target: Path) -> None:
    """The same file at a second path; a copy where it is another user's, or there are no links.

    Whoever publishes a file opens it to the group, which is allowed to its owner alone.
    """
    if source.stat().st_uid == os.geteuid():
        with suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def hash_file(path: str | Path) -> str:
    """BLAKE3 of a file's bytes, in hex."""
    return blake3().update_mmap(path).hexdigest()


def read_json(path: str | Path) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


@contextmanager
def open_as(folder: Path) -> Iterator[bool]:
    """What is made meanwhile is open to the group if `folder` is, whatever the umask.

    Yields whether it is: a folder that its group may write to is shared by that group.
    """
    umask = os.umask(0o077)
    try:
        shared = bool(folder.stat().st_mode & stat.S_IWGRP)
        os.umask(umask & ~stat.S_IRWXG if shared else umask)
        yield shared
    finally:
        os.umask(umask)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each as open to the group as the one that it lies in.

    Raises UserError where that is not allowed, and on a full disk.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        with open_as(path.parent) as shared, suppress(FileExistsError):
            path.mkdir()
            if shared:
                _give_to_group(path, path.parent.stat().st_gid)
    except OSError as error:
        raise _explained(error, path.parent) from None


@contextmanager
def published(final: str | Path, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `final` that becomes `final` by one rename at the end.

    On any error the temporary is removed and `final` is as it was. Where `final`
    is a folder that another process published meanwhile, that one stays: equal
    keys mean equal bytes. In a folder that its group may write to, the group may
    read what is published. Raises UserError on a full disk, and where it is not
    allowed to write.
    """
    final = Path(final)
    make_folder(final.parent)
    _remove_dead(final)
    umask = _umask()
    with open_as(final.parent) as shared:
        temporary = _temporary(final, shared)
        target = temporary / final.name
        try:
            if folder:
                target.mkdir()
            yield target
            if target.exists() or not final.exists():  # or see remove_if_dead
                _settle(target, umask, final.parent.stat().st_gid if shared else None)
                _rename(target, final)
                _sync(final.parent)
            _remove_dead(final)
        except OSError as error:
            if final.exists() and not temporary.exists():
                raise UserError(
                    f"{final}: another process made it while this one stood still; run snakemake "
                    "again, which takes it as it is"
                ) from None
            if error.errno in DISK_FULL:
                raise _explained(error, final) from None
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(final: Path, shared: bool) -> Path:
    prefix = f".{final.name}.{process_tag()}."
    try:
        made = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=final.parent))
    except OSError as error:
        raise _explained(error, final.parent) from None
    if shared:  # what is left when this process is killed can be removed by others too
        _give_to_group(made, final.parent.stat().st_gid)
    return made


def _explained(error: OSError, path: Path) -> Exception:
    """What a user can mend as a UserError."""
    if error.errno in DISK_FULL:
        return UserError(
            f"{path}: the disk is full; nothing was left half-written. Free some space "
            "(`snakemake --delete-all-output` clears what the present config made), run again"
        )
    if error.errno in NOT_ALLOWED:
        return UserError(
            f"{path}: you may not write in this folder; docs/shared-cache.md says how a group "
            "shares a cache"
        )
    return error


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
        return None if _hidden(int(pid)) else False


def _hidden(pid: int) -> bool:
    """Whether a process is there that may not be looked at: another user's, on some machines."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
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
    """Remove a temporary of `published` whose process is dead or must be."""
    if is_left(left):
        shutil.rmtree(left, ignore_errors=True)


def is_left(left: Path) -> bool:
    """Whether this is a temporary of `published` whose process is dead or must be.

    That of another machine or container, which can't be asked, must be when nothing was
    written for long. That is less long where the target is there: equal keys mean equal
    bytes, so a process that only stood still finds made what it was making.
    """
    parts = re.fullmatch(r"(.+)-(\d+)-(\d+)\.[^.]+\.tmp", left.name)
    if not parts:
        return False
    here = parts[1].endswith(f".{_place()}")
    running = is_running(f"{_place()}-{parts[2]}-{parts[3]}") if here else None
    return running is False or (running is None and _abandoned(left))


def remove(target: Path) -> None:
    """Remove a file or a folder, which is whole under its name or not there at any moment.

    What a killed process leaves of it is a temporary, as those of `published`.
    """
    if not target.is_dir():
        target.unlink(missing_ok=True)
        return
    with open_as(target.parent) as shared:
        temporary = _temporary(target, shared)
    try:
        os.rename(target, temporary / target.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(final: Path, beside: Path | None = None) -> None:
    """Remove what jobs that are dead, or must be, left of a target.

    beside: a folder that nobody needs any more when the target is there.
    """
    _remove_dead(final)
    if beside and final.exists() and is_still(beside, SUPERSEDED_SECONDS):
        shutil.rmtree(beside, ignore_errors=True)


def _abandoned(left: Path) -> bool:
    try:
        superseded = any((left.parent / name).exists() for name in os.listdir(left))
    except OSError:  # gone, or closed to us
        return False
    return is_still(left, SUPERSEDED_SECONDS if superseded else ABANDONED_SECONDS)


def is_still(folder: Path, seconds: float) -> bool:
    """Whether nothing was written in a folder for so long."""
    try:
        newest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:  # it changes just now, or is closed to us
        return False
    return time.time() - newest > seconds


def _rename(source: Path, final: Path) -> None:
    try:
        os.rename(source, final)
    except OSError:
        # A folder can only be renamed over an empty one: somebody was first.
        if not (source.is_dir() and final.is_dir() and any(final.iterdir())):
            raise


def _settle(path: Path, umask: int, group: int | None) -> None:
    """Everything on disk, and open to whom the umask opens new files: some libraries close it.

    Of a `group` that shares the folder all may read the files and change the folders.
    """
    if path.is_dir() and group is not None:
        # Snakemake runs of several users may have waited for this folder: all may touch it.
        (path / TIMESTAMP).touch()
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if entry.is_file():
            _set_mode(entry, 0o666 & ~umask)
        if group is not None:
            _give_to_group(entry, group)
        _sync(entry)


def _give_to_group(path: Path, group: int) -> None:
    about = path.stat()
    mode = stat.S_IRGRP
    if path.is_dir():
        mode = stat.S_IRWXG
    elif path.name == TIMESTAMP:
        mode |= stat.S_IWGRP
    if about.st_gid != group:  # the folder above lacks the setgid bit
        with suppress(PermissionError):
            os.chown(path, -1, group)
            mode |= stat.S_ISGID if path.is_dir() else 0
    _set_mode(path, stat.S_IMODE(about.st_mode) | mode)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:  # only its owner may even ask
        path.chmod(mode)


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


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
