"""The disk of a folder: its kind and speed, and whether its file system does what is asked."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ...base.publish import DISK_FULL
from . import FAIL, OK, WARN, Finding

NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "cifs", "smb3", "smbfs",
           "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "orangefs", "pvfs2",
           "afs", "wekafs", "panfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"}  # fmt: skip
OBJECT_STORES = {"fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"}
IN_MEMORY = {"tmpfs", "ramfs"}
OF_THE_HOST = {"9p", "virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "drvfs"}

MEASURED_BYTES = 256 * 2**20
MEASURED_SECONDS = 3.0  # of writing, and of reading
STEP_BYTES = 16 * 2**20
SLOW = 50e6  # bytes a second: one core tokenizes as fast
REMEDY_SLOW = "put the cache on a local SSD or a faster file system: cache: FOLDER in config.yaml"


@dataclass(frozen=True)
class Disk:
    """kind: SSD, HDD, network, memory, host, or unknown; system: the file system's type."""

    kind: str
    system: str
    mounted: str


def nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    folder = Path(os.path.realpath(folder))
    while not folder.is_dir():
        folder = folder.parent
    return folder


def check(folder: Path) -> Iterator[Finding]:
    """Of a folder that will be written to, and need not be there yet; nothing stays in it."""
    there = nearest(folder)
    disk = disk_of(there)
    yield _kind(disk)
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            FAIL, "folder", f"you may not write in {there}",
            "have its owner open it (docs/shared-cache.md), or name another one: cache: in "
            "config.yaml",
        )  # fmt: skip
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".tokencache-doctor-", dir=there) as scratch:
            yield from file_system(Path(scratch), disk)
            yield from _speed(Path(scratch))
    except OSError as error:
        full = "free some space: " if error.errno in DISK_FULL else ""
        yield Finding(FAIL, "folder", f"{there}: {error.strerror}", f"{full}try another folder")


def _kind(disk: Disk) -> Finding:
    said = f"{disk.kind} ({disk.system}, mounted at {disk.mounted})"
    if disk.system in OBJECT_STORES:
        return Finding(
            FAIL, "disk", f"{said}: an object store renames nothing",
            "take a file system for the cache and copy finished caches there",
        )  # fmt: skip
    remedy = {
        "HDD": "rows in random order are slow to read from it: an SSD, or enough memory to keep "
        "the cache in it. (Virtual disks often say that they turn and don't.)",
        "memory": "what is in it is gone after a reboot, and takes memory: take a disk",
        "host": "a folder of the machine around this one: slow for many files; take a disk of "
        "this machine",
    }.get(disk.kind)
    return Finding(WARN if remedy else OK, "disk", said, remedy or "")


def disk_of(folder: Path, root: Path = Path("/")) -> Disk:
    """By mountinfo and the block device's own word; root: where proc and sys are."""
    mounted, system, source = _mount(folder, root)
    if system in NETWORK:
        return Disk("network", system, mounted)
    if system in IN_MEMORY:
        return Disk("memory", system, mounted)
    if system in OF_THE_HOST:
        return Disk("host", system, mounted)
    kind = {True: "HDD", False: "SSD", None: "unknown"}[_rotates(folder, source, root)]
    return Disk(kind, system, mounted)


def _mount(folder: Path, root: Path) -> tuple[str, str, str]:
    """Where a folder's file system is mounted, its type, and its source."""
    found = ("/", "unknown", "")
    with suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            place = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
            system, source, *_ = after.split()
            if folder.is_relative_to(place) and len(place) >= len(found[0]):  # the last one counts
                found = (place, system, source)
    return found


def _rotates(folder: Path, source: str, root: Path) -> bool | None:
    numbers = [folder.stat().st_dev]
    with suppress(OSError):  # btrfs and others have a device number of no device
        numbers.append(os.stat(source).st_rdev)
    for number in numbers:
        name = f"{os.major(number)}:{os.minor(number)}"
        device = Path(os.path.realpath(root / "sys/dev/block" / name))
        if (device / "partition").exists():
            device = device.parent
        with suppress(OSError):
            return (device / "queue/rotational").read_text().strip() == "1"
    return None


# What files are to do


def file_system(scratch: Path, disk: Disk) -> Iterator[Finding]:
    """In an empty folder of the file system. Raises OSError where nothing can be written."""
    old, new = scratch / "old", scratch / "new"
    old.write_text("old")
    new.write_text("new")
    with open(new) as file:
        os.fsync(file.fileno())
    os.replace(new, old)
    over = old.read_text() == "new" and not new.exists()
    said = f"{disk.system}: rename over a file, rename of folders, fsync"
    if over and _keeps_full_folders(scratch) and _syncs(scratch):
        yield Finding(OK, "file system", said)
    else:
        yield Finding(
            FAIL, "file system", f"{said}: one of these does not work as on a POSIX file system",
            "two jobs could damage each other's results: take another file system for the cache",
        )  # fmt: skip
    yield _links(scratch)
    if disk.kind == "network":
        yield Finding(
            OK, "network disk",
            "what another node wrote is seen later: keep latency-wait: 60 of slurm/config.yaml",
        )  # fmt: skip


def _keeps_full_folders(scratch: Path) -> bool:
    """A folder must not be renamed over one that holds something: a lease counts on it."""
    for name in ("first", "second"):
        (scratch / name).mkdir()
        (scratch / name / "held").touch()
    try:
        os.rename(scratch / "first", scratch / "second")
    except OSError:
        return True
    return False


def _syncs(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _links(scratch: Path) -> Finding:
    try:
        os.link(scratch / "old", scratch / "link")
    except OSError as error:
        return Finding(
            WARN, "hard links", f"there are none ({error.strerror})",
            "nothing fails, but caches that several jobs write are copied once more",
        )  # fmt: skip
    return Finding(OK, "hard links", "there are")


def index(folder: Path) -> Finding:
    """Whether what is known of sources can be kept: SQLite asks the file system for locks."""
    there = nearest(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".tokencache-doctor-", dir=there) as scratch:
            database = Path(scratch, "index.sqlite")
            with closing(sqlite3.connect(database, timeout=2)) as made, made:
                made.execute("CREATE TABLE known (id TEXT)")
    except (OSError, sqlite3.Error) as error:
        return Finding(
            WARN, "index", f"can't be kept in {there} ({error})",
            "every start would hash all sources again: start in a folder of a local disk, or one "
            "with locks, that you may write to",
        )  # fmt: skip
    return Finding(OK, "index", f"can be kept in {there}")


# Space and speed


def space(folder: Path, needed: float | None) -> Finding:
    """needed: bytes that all there is to make may take, or None where that is not known."""
    free = shutil.disk_usage(nearest(folder)).free
    said = f"{free / 1e9:,.1f} GB free"
    if needed is None:
        return Finding(OK if free > 1e9 else WARN, "space", said, "" if free > 1e9 else "free some")
    said += f"; all that config.yaml names takes {needed / 1e9:,.1f} GB at most"
    if free >= needed:
        return Finding(OK, "space", said)
    return Finding(
        WARN, "space", said,
        "free some, name another folder (cache: in config.yaml), or take format: view, which "
        "copies no tokens",
    )  # fmt: skip


def _speed(scratch: Path) -> Iterator[Finding]:
    if shutil.disk_usage(scratch).free < 2 * MEASURED_BYTES:
        yield Finding(WARN, "speed", "not measured: the disk is nearly full", "free some space")
        return
    written, read = measure(scratch / "measured")
    for name, rate in (("write", written), ("read", read)):
        said = f"{rate / 1e6:,.0f} MB/s"
        slow = rate < SLOW
        yield Finding(WARN if slow else OK, f"{name} speed", said, REMEDY_SLOW if slow else "")


def measure(
    path: Path, size: int = MEASURED_BYTES, seconds: float = MEASURED_SECONDS
) -> tuple[float, float]:
    """Bytes a second that are written to the disk, and read from it, of one new file.

    Nothing of it is what the system only holds in memory: each step of writing ends with
    fsync, and reading goes past memory (O_DIRECT) or begins after it was let go.
    """
    step = min(STEP_BYTES, size)
    data = os.urandom(step)  # what can't be compressed
    started, done = time.perf_counter(), 0
    with open(path, "wb", buffering=0) as file:
        while done < size and time.perf_counter() - started < seconds:
            done += file.write(data)
            os.fsync(file.fileno())
        written = done / (time.perf_counter() - started)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return written, _read(path, step, seconds)


def _read(path: Path, step: int, seconds: float) -> float:
    flags = os.O_RDONLY | getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:  # a file system without it
        descriptor = os.open(path, os.O_RDONLY)
    started, done = time.perf_counter(), 0
    try:
        with mmap.mmap(-1, step) as memory:  # lies where O_DIRECT asks for
            while time.perf_counter() - started < seconds:
                got = os.readv(descriptor, [memory])
                if not got:
                    break
                done += got
    finally:
        os.close(descriptor)
    return done / (time.perf_counter() - started)
