"""What running jobs say of themselves for `tokencache status`: a small file each.

    {"stage", "target", "node", "process": tag, "state": "running" or "failed", "error",
     "started", "updated": seconds since 1970 by the job's clock, "still": seconds since it last
     got on, "progress": progress.State or null}

It is replaced by one rename at most every two seconds while work goes on, and removed at the
end. It is nobody's input, so whatever can't be written is left unwritten.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import progress
from .processes import is_running, process_tag
from .publish import make_folder

WRITE_SECONDS = 2.0
BEAT_SECONDS = 10.0  # where nothing changed
SILENT_SECONDS = 60.0  # of a job that writes every ten seconds at least
STUCK_SECONDS = 300.0  # a job that lives and got no further
MOST_CHARACTERS = 300  # of an error's message


class ProgressFile:
    """That of this process, which a thread writes from `start` to `end`."""

    def __init__(self, path: Path, stage: str, target: str, node: str) -> None:
        self._path = path
        self._about = {"stage": stage, "target": target, "node": node, "process": process_tag(),
                       "started": time.time()}  # fmt: skip
        self._state: progress.State | None = None
        self._moved = self._written = time.monotonic()
        self._through = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        # Here, not in the thread: the umask is the process's.
        with suppress(OSError, UserError):
            make_folder(self._path.parent)
        self._write()
        progress.listen(self._hear)
        self._thread.start()

    def end(self, error: str | None = None) -> None:
        """Remove the file; or leave it to say what went wrong."""
        if not self._thread.is_alive():
            return
        progress.listen(None)
        self._through.set()
        self._thread.join()
        if error is None:
            with suppress(OSError):
                self._path.unlink()
        else:
            self._write(state="failed", error=error[:MOST_CHARACTERS])

    def _hear(self, state: progress.State) -> None:
        if self._state is None or state["done"] != self._state["done"]:
            self._moved = time.monotonic()
        self._state = state

    def _go_on(self) -> None:
        said = None
        while not self._through.wait(WRITE_SECONDS):
            if self._state is not said or time.monotonic() - self._written >= BEAT_SECONDS:
                said = self._state
                self._write()

    def _write(self, state: str = "running", error: str | None = None) -> None:
        self._written = time.monotonic()
        content = self._about | {
            "state": state,
            "error": error,
            "updated": time.time(),
            "still": self._written - self._moved,
            "progress": self._state,
        }
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError:  # a full disk, one that is read-only, a plan that is through
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def reporting(path: Path, stage: str, target: str, node: str) -> Iterator[None]:
    """Whatever progress is shown in here stands in a file too."""
    file = ProgressFile(path, stage, target, node)
    file.start()
    try:
        yield
    except BaseException as error:
        file.end(str(error) or type(error).__name__)
        raise
    file.end()


def read(folder: Path) -> list[dict[str, Any]]:
    """What the jobs of a plan say, by stage and target; nothing where there is no folder."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):  # it ended just now
            about = json.loads(path.read_text(encoding="utf-8"))
            found.append(about | {"file": str(path)})
    return sorted(found, key=lambda about: (about["stage"], about["target"]))


class Watch:
    """What one observer makes of the files: who lives, who stands still, who was killed.

    Of a process of this machine the system says whether it runs. Of others it is told by the
    file's age, and as clocks differ, one that changes while it is watched is no old one.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # file: its last word, when it was new

    def look(self, folder: Path) -> list[dict[str, Any]]:
        """As `read`, with `state` "running", "stalled" or "failed", and `why` for the latter."""
        return [self._judged(about) for about in read(folder)]

    def _judged(self, about: dict[str, Any]) -> dict[str, Any]:
        if about["state"] == "failed":
            return about | {"why": about["error"]}
        last, now = about["updated"], time.monotonic()
        before = self._seen.get(about["file"])
        if before is None or before[0] != last:
            # At first sight the clocks are all there is.
            age = max(0.0, time.time() - last) if before is None else 0.0
            self._seen[about["file"]] = before = (last, now - age)
        silent = now - before[1]
        why = ""
        if is_running(about["process"]) is False:
            why = "its process is gone: it was killed"
        elif silent > SILENT_SECONDS:
            why = f"no word for {progress.duration(silent)}: it was killed, or its node is gone"
        elif about["progress"] and about["still"] > STUCK_SECONDS:
            why = f"no further for {progress.duration(about['still'])}"
        return about | {"state": "stalled" if why else "running", "why": why}
