"""Files that appear whole or not at all: write beside, fsync, rename once."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from .processes import TAG, is_running, process_tag

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
IN_RUST = re.compile(rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT})\)")
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

# What nobody wrote to for so long was left by a job that is dead, wherever it ran.
ABANDONED_SECONDS = 7 * 86400
# The same where the target is there: then a job that only stood still loses nothing.
SUPERSEDED_SECONDS = 3600
# What `published` and `remove` write to, beside a target: .TARGET.TAG.RANDOM.tmp
TEMPORARY = re.compile(rf"\.(?P<target>.+)\.(?P<tag>{TAG.pattern})\.[^.]+\.tmp")
# The same of an earlier version, whose tags say too little to be asked for.
OLD_TEMPORARY = re.compile(r"\..+-[0-9]+-[0-9]+-[0-9]+\.[^.]+\.tmp")

# Snakemake sets the time of this file in a folder that a job made or found.
TIMESTAMP = ".snakemake_timestamp"


def check_name(path: str | Path, where: str = "") -> None:
    """Raises UserError for a path that is not UTF-8, which no plan can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where and f'{where}: '}the name of {os.fsencode(path)!r} is not UTF-8; rename it"
        ) from None


def link(source: Path, target: Path) -> None:
    """The same file at a second path; a copy where it is another user's, or there are no links.

    Whoever publishes a file opens it to the group, which is allowed to its owner alone.
    """
    if source.stat().st_uid == os.geteuid():
        with suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


@contextmanager
def open_as(folder: Path, private: bool = False) -> Iterator[bool]:
    """What is made meanwhile is open to the group if `folder` is, whatever the umask; what is
    `private`, to this user alone.

    Yields whether it is: a folder that its group may write to is shared by that group.
    """
    umask = os.umask(0o077)
    try:
        shared = not private and bool(folder.stat().st_mode & stat.S_IWGRP)
        if not private:
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
def published(
    final: str | Path,
    folder: bool = False,
    keyed: bool = False,
    needs: int | None = None,
    private: bool = False,
) -> Iterator[Path]:
    """A temporary path beside `final` that becomes `final` by one rename at the end.

    On any error the temporary is removed and `final` is as it was. Where `final`
    is a folder that another process published meanwhile, that one stays: equal
    keys mean equal bytes. So does a file that is `keyed`; another file is replaced.
    In a folder that its group may write to, the group may read what is published. What is
    `private` can be read by this user alone.
    needs: about how many bytes it will have, for a message. Raises UserError on a
    full disk, and where it is not allowed to write.
    """
    final = Path(final)
    make_folder(final.parent)
    remove_dead(final)
    umask = 0o077 if private else _umask()
    with open_as(final.parent, private) as shared:
        temporary = _temporary(final, shared)
        target = temporary / final.name
        try:
            if folder:
                target.mkdir()
            yield target
            if target.exists() or not final.exists():  # or see remove_if_dead
                _settle(target, umask, final.parent.stat().st_gid if shared else None)
                _rename(target, final, keyed)
                _sync(final.parent)
            remove_dead(final)
        except OSError as error:
            if final.exists() and not temporary.exists():
                raise UserError(
                    f"{final}: another process made it while this one stood still; run snakemake "
                    "again, which takes it as it is"
                ) from None
            if error.errno in DISK_FULL:
                raise UserError(_full(error, final, size_of(temporary), needs)) from None
            raise
        except Exception as error:
            # As libraries in Rust say it, such as `tokenizers`: with no class of its own.
            if not (found := IN_RUST.search(str(error))):
                raise
            full = OSError(int(found[1]), str(error))
            raise UserError(_full(full, final, size_of(temporary), needs)) from None
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
    """What a user can fix as a UserError."""
    if error.errno in DISK_FULL:
        return UserError(_full(error, path, 0, None))
    if error.errno in NOT_ALLOWED:
        return UserError(
            f"{path}: you may not write in this folder; docs/shared-cache.md says how a group "
            "shares a cache"
        )
    return error


def _full(error: OSError, path: Path, written: int, needs: int | None) -> str:
    """What to say of a full disk. written: bytes that are given back now."""
    # Of a quota, the file system's own figures say nothing.
    free = 0 if error.errno == errno.EDQUOT else shutil.disk_usage(path.parent).free
    room = written + free
    if needs is not None and needs > room:
        needed = f"this needs about {_megabytes(needs)}, and there is room for {_megabytes(room)}"
    else:
        needed = f"this needs more than {_megabytes(room)}, which is all the room there was"
    return (
        f"{path}: the disk is full: {needed}. Nothing was left half-written. Free some space and "
        "run again; `tokencache gc` says what no configuration needs any more"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what goes meanwhile is not counted."""
    size = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError):
            size += file.lstat().st_size if file.is_file() else 0
    return size


def remove_dead(final: Path) -> None:
    """Remove what killed processes left of the same target."""
    for left in matches(final.parent, f".{glob.escape(final.name)}.*.tmp"):
        if _target_of(left) == final.name:
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
    target = _target_of(left)
    if target is None:
        return False
    found = TEMPORARY.fullmatch(left.name)
    running = is_running(found["tag"]) if found else None
    if running is not None:
        return not running
    # One of an earlier version that is empty does not say what it is of.
    superseded = target != left.name and (left.parent / target).exists()
    return is_still(left, SUPERSEDED_SECONDS if superseded else ABANDONED_SECONDS)


def _target_of(left: Path) -> str | None:
    """The name of the target that a temporary is of; None of anything else.

    Nothing but the target is in a temporary, or it is somebody else's.
    """
    try:
        inside = os.listdir(left)
    except OSError:  # gone, closed to us, or a file
        return None
    if found := TEMPORARY.fullmatch(left.name):
        return found["target"] if inside in ([], [found["target"]]) else None
    if OLD_TEMPORARY.fullmatch(left.name) and len(inside) < 2:
        # The target's name ends somewhere before the tag.
        target = inside[0] if inside else left.name
        return target if not inside or left.name.startswith(f".{target}.") else None
    return None


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


def matches(root: Path, *patterns: str) -> list[Path]:
    """What is below a folder and called so, in order; what goes or is closed is left out.

    No * means a name that begins with a dot.
    """
    # pathlib's own raises where something goes meanwhile.
    found = [glob.glob(f"{glob.escape(str(root))}/{pattern}") for pattern in patterns]
    return sorted(Path(path) for paths in found for path in paths)


def is_still(folder: Path, seconds: float) -> bool:
    """Whether nothing was written in a folder for so long."""
    try:
        newest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:  # it changes just now, or is closed to us
        return False
    return time.time() - newest > seconds


def _rename(source: Path, final: Path, keyed: bool) -> None:
    if keyed and source.is_file():
        # On NFS, who has a file open on another machine loses it when it is replaced.
        try:
            os.link(source, final)
            return
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if final.exists():
                return
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
