"""Trials of the nets: a job in a process of its own, with a fault at the n-th call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from helpers.workflow import MEASURED, environment

HERE = Path(__file__).parent
SECONDS = 120.0  # for one trial; most take less than one

# What jobs and verbs import, also where they do so late: AutoTokenizer takes torch along.
MODULES = (
    "torch", "transformers", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama", "transformers.utils.chat_template_utils",
    "sentencepiece", "tokenizers.trainers", "datasets", "gigatoken", "pytest", "snakemake.common",
    "tokencache.cli", "tokencache.workflow.stages", "tokencache.plan.resolve",
    "tokencache.tokens.write", "tokencache.caches.dataset", "tokencache.tokenizer.given",
    "tokencache.tokenizer.trained", "tokencache.workflow.load", "tokencache.sources.hub",
    "tokencache.documents.chat_template", "tokencache.training.run",
    "tokencache.caches.report.page", "tokencache.base.job_status", "tokencache.operate.gc",
    "tokencache.operate.verify", "tokencache.operate.clear", "tokencache.operate.why",
)  # fmt: skip

MADE = ("cache", "results")
RECORD = ".tokencache.json"  # that stands in a folder, whole as it is, and says what it is
MARKS = (".last_used", ".snakemake_timestamp")  # that somebody used something


class What(IntEnum):
    """What happens at the n-th call, as in faults.c."""

    KILL = 1  # of the whole process group, before the call
    TEAR = 2  # the same after half of what is written
    KILL_SELF = 3  # of the one process
    FULL = 4  # from there on the disk has no space
    REPLACE = 5  # the watched file is replaced by another
    CUT = 6  # half of it is cut off
    REWRITE = 7  # it gets the bytes of another, in place


@dataclass(frozen=True)
class Fault:
    """One of `What` at the n-th call of a trial; 0: only count the calls."""

    what: What
    at: int = 0
    watched: str = ""
    other: str = ""

    def variables(self, counter: Path, library: Path) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library),
            "TRUST_WHAT": str(int(self.what)),
            "TRUST_AT": str(self.at),
            "TRUST_COUNTER": str(counter),
            "TRUST_WATCHED": self.watched,
            "TRUST_OTHER": self.other,
        }


@dataclass(frozen=True)
class Ended:
    """What became of a process: its status (None: it took too long), what it said, its calls."""

    status: int | None
    said: str
    calls: int = 0

    @property
    def fine(self) -> bool:
        return self.status == 0 and "Traceback" not in self.said

    @property
    def told(self) -> bool:
        """Whether it ended with a message, and no traceback or crash."""
        return self.status == 1 and "Traceback" not in self.said and "tokencache: " in self.said

    @property
    def killed(self) -> bool:
        return self.status == -9


class Trials:
    """Starts processes that have everything imported."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._own = Path(tempfile.mkdtemp(prefix="trust-"))
        paths = [str(HERE.parents[1] / "src"), str(HERE.parent)]
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(library), *MODULES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment() | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        assert self._server.stdout.readline() == '"ready"\n'
        self._number = 0

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        shutil.rmtree(self._own)

    def start(
        self, folder: Path, *words: Any, fault: Fault | None = None, settings: dict | None = None
    ) -> tuple[int, Path, Path]:
        self._number += 1
        log, counter = self._own / f"{self._number}.log", self._own / f"{self._number}.calls"
        asked = {
            "do": "start", "folder": str(folder), "words": words, "log": str(log),
            "settings": settings or {},
            "fault": fault and {
                "what": fault.what, "at": fault.at, "counter": str(counter),
                "watched": fault.watched, "other": fault.other,
            },
        }  # fmt: skip
        return self._ask(asked), log, counter

    def wait(self, started: tuple[int, Path, Path], seconds: float = SECONDS) -> Ended:
        child, log, counter = started
        status = self._ask({"do": "wait", "child": child, "seconds": seconds})
        calls = int.from_bytes(counter.read_bytes(), sys.byteorder) if counter.exists() else 0
        said = log.read_text(errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        counter.unlink(missing_ok=True)
        return Ended(status, said, calls)

    def run(self, folder: Path, *words: Any, **more: Any) -> Ended:
        return self.wait(self.start(folder, *words, **more))

    def _ask(self, asked: dict[str, Any]) -> Any:
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def compiled(folder: Path) -> Path | None:
    """faults.c as a library; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "faults.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def tree(folder: Path) -> dict[str, bytes | None]:
    """Relative path and bytes of all that was made in a folder; None for folders and measures."""
    found: dict[str, bytes | None] = {}
    for path in (path for root in MADE for path in sorted((folder / root).rglob("*"))):
        if path.name not in MARKS:
            measured = path.is_dir() or path.name in MEASURED
            found[str(path.relative_to(folder))] = None if measured else path.read_bytes()
    return found


def grown_old(folder: Path) -> None:
    """As if all that is hidden had lain there for long."""
    when = time.time() - 30 * 86400
    for path in (path for root in MADE for path in (folder / root).rglob("*")):
        if is_hidden(str(path.relative_to(folder))):
            os.utime(path, (when, when), follow_symlinks=False)


def is_hidden(name: str) -> bool:
    path = Path(name)
    parts = path.parent.parts if path.name == RECORD else path.parts
    return any(part.startswith(".") for part in parts)


def published(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Of a tree, what has its final name."""
    return {name: data for name, data in found.items() if not is_hidden(name)}


def difference(found: dict[str, bytes | None], wanted: dict[str, bytes | None]) -> str:
    """The first things in which two trees differ; nothing if they do not."""
    more, less = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
    other = [name for name in found.keys() & wanted.keys() if found[name] != wanted[name]]
    parts = {"left over": more, "missing": less, "other bytes": sorted(other)}
    return "; ".join(f"{what}: {', '.join(names[:4])}" for what, names in parts.items() if names)


def half_published(found: dict[str, bytes | None], wanted: dict[str, bytes | None]) -> str:
    """What stands under a final name and is not what it should be, or not all of it."""
    ours = published(found)
    wrong = [n for n, data in ours.items() if n not in wanted or wanted[n] != data]
    # A folder is published by one rename, so that of each file all others are there.
    for name in wanted:
        unit = unit_of(name)
        if unit and unit in ours and name not in ours:
            wrong.append(f"{name} is missing")
    return ", ".join(sorted(wrong)[:4])


def unit_of(name: str) -> str | None:
    """The folder that is published whole and that a file lies in."""
    parts = Path(name).parts
    if len(parts) > 3 and parts[0] == "cache" and parts[1] in ("tokenizers", "sources"):
        return str(Path(*parts[:3]))
    if len(parts) > 4 and parts[0] in ("cache", "results") and parts[1] != "tokens":
        return str(Path(*parts[:4]))
    return None


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """A copy of a folder for one trial."""
    above = Path(tempfile.mkdtemp(prefix="trust-"))
    try:
        yield Path(shutil.copytree(folder, above / "w", symlinks=True))
    finally:
        shutil.rmtree(above, ignore_errors=True)
