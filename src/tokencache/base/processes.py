"""Processes that write to one disk: a tag for each, and whether the process of a tag still runs.

    PLACE-PID-TICKS

PLACE is a hash of the machine's whole name, its boot, and the numbering of its processes, which
containers have of their own. TICKS is when the process started, counted from that boot. So a tag
means one process, whatever the clock shows and whatever machines are called alike.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil
from blake3 import blake3

TAG = re.compile(r"(?P<place>[0-9a-f]{16})-(?P<pid>[0-9]+)-(?P<ticks>[0-9]+)")

BOOT = Path("/proc/sys/kernel/random/boot_id")
NUMBERING = Path("/proc/self/ns/pid")
DEAD = "ZX"  # ended, and nobody has asked for its status yet


def process_tag() -> str:
    """This process, told from every other one that may write to the same disk."""
    return f"{_place()}-{os.getpid()}-{_look(os.getpid(), 'self')[1]}"


def is_running(tag: str) -> bool | None:
    """Whether the process of a tag still runs; None where that can't be seen from here.

    It can't of another machine, boot or container. A tag of an earlier version has neither the
    boot nor ticks, so nothing is concluded from it.
    """
    found = TAG.fullmatch(tag)
    if not found or found["place"] != _place():
        return None
    pid = int(found["pid"])
    if tag == process_tag():
        return True
    if not _is_numbered_as_we_are():
        return None
    try:
        state, ticks = _look(pid)
    except ProcessLookupError:
        return None if _is_hidden(pid) else False
    return ticks == int(found["ticks"]) and state not in DEAD


def _is_numbered_as_we_are() -> bool:
    """Whether /proc is of this process's own numbering: without one of its own, a container sees
    that of the machine, where the same numbers are other processes."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:  # macOS
        return True


def _place() -> str:
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    numbering = NUMBERING.stat().st_ino if NUMBERING.exists() else 0
    return blake3(f"{socket.gethostname()}\n{boot}\n{numbering}".encode()).hexdigest()[:16]


def _look(pid: int, name: str | None = None) -> tuple[str, int]:
    """The state of a process, and when it started. Raises ProcessLookupError.

    name: what /proc calls it. This process is `self` there, whatever numbers /proc goes by.
    """
    try:
        # The name, in parentheses, may have anything in it.
        fields = (
            Path(f"/proc/{name or pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        )
        return fields[0], int(fields[19])
    except (OSError, IndexError):
        pass
    if NUMBERING.exists():
        raise ProcessLookupError(pid)
    try:  # macOS, which keeps this time as it was
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "R"
        return state, round(process.create_time() * 100)
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that may not be looked at: another user's, on some machines."""
    with suppress(ProcessLookupError):
        with suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False
