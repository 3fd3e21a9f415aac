"""What this process may use of its machine, and the settings that fit that.

They say how fast and in how much memory work is done. None of them shows in a byte of what
is made, so none is part of a key.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..errors import UserError
from .json_files import read_json
from .manifest import beside

PROCESSES, ROWS, WRITER_ROWS = "DATASET_NUM_PROC", "DATASET_BATCH_SIZE", "DATASET_WRITER_BATCH_SIZE"
RAYON, OPENMP = "RAYON_NUM_THREADS", "OMP_NUM_THREADS"
VARIABLES = (PROCESSES, ROWS, WRITER_ROWS, RAYON, OPENMP)

SLURM_CORES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
SLURM_MEMORY = ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU")  # MiB
# What Snakemake takes from a job's environment comes to it under another name.
KEPT = "TOKENCACHE_"

# The stages that do their work in several threads or processes, as many as one likes.
SHARED_OUT = ("fetch", "train-tokenizer", "tokenize")

# Numbers of glibc's mallopt, and how much freed memory it is to keep.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**28

GB = 10**9
MIB = 2**20
BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Told:
    """A number, and who said it."""

    amount: int
    by: str


@dataclass(frozen=True)
class Allowed:
    """cores; memory: bytes in all; free: bytes of it that nobody has in use."""

    cores: Told
    memory: Told
    free: int


@dataclass(frozen=True)
class Mode:
    """What is held in memory.

    batch_bytes: of documents in hand at once; ahead: batches of them that are made while one
    is in use; waiting_bytes: of record batches, that wait to be written beside the last one;
    whole_files: whether token shards are read from start to end before they are packed.
    """

    name: str
    batch_bytes: int
    ahead: int
    waiting_bytes: int
    whole_files: bool


# A tokenization job keeps to 1.5 GB in each of them.
IN_MEMORY = Mode("in memory", 32 * MIB, 3, 256 * MIB, True)
BALANCED = Mode("balanced", 16 * MIB, 2, 64 * MIB, False)
FROM_DISK = Mode("from disk", 8 * MIB, 2, 0, False)
# From so many bytes free on.
MODES = ((50 * GB, IN_MEMORY), (20 * GB, BALANCED), (0, FROM_DISK))


@dataclass(frozen=True)
class Settings:
    """What was chosen.

    workers: threads of a job; rayon, openmp: those of what is written in Rust, and those of
    PyTorch and pyarrow; rows: documents in hand at once; writer_rows: rows that may wait to be
    written, None for what the mode says.
    """

    allowed: Allowed
    workers: Told
    rayon: Told
    openmp: Told
    mode: Mode
    rows: Told
    writer_rows: int | None

    @property
    def processes(self) -> int:
        """Of `datasets`, which fetches where the user is: on a login node, maybe."""
        return self.workers.amount if self.workers.by == PROCESSES else 1

    def whole_files(self, size: int) -> bool:
        """Whether so many bytes of files are to be read before they are used."""
        return self.mode.whole_files and size <= self._most_whole()

    def _most_whole(self) -> int:
        return self.allowed.free // 2

    def may_wait(self, rows: int, size: int) -> bool:
        """Whether so many rows, of so many bytes, may wait to be written."""
        if self.writer_rows is None:
            return size <= self.mode.waiting_bytes
        return rows <= self.writer_rows and size <= IN_MEMORY.waiting_bytes

    def apply(self) -> None:
        """Tell the libraries, which look when they are loaded or first used."""
        os.environ[RAYON] = str(self.rayon.amount)
        for name in (OPENMP, "MKL_NUM_THREADS"):
            os.environ[name] = str(self.openmp.amount)

    def lines(self, stage: str) -> str:
        """What was chosen for a stage of the command line, and why, in two lines."""
        found = self.allowed
        free, memory = (f"{size / GB:.1f} GB" for size in (found.free, found.memory.amount))
        return (
            f"machine: {_of(found.cores, 'core')}, {free} free of {memory} ({found.memory.by})\n"
            f"settings: {'; '.join([self._threads(stage), *self._parts(stage)])}"
        )

    def _threads(self, stage: str) -> str:
        if stage == "fetch":
            by = PROCESSES if self.processes > 1 else f"{PROCESSES} may say more"
            return _of(Told(self.processes, by), "process", "es")
        said = _of(self.rayon, "thread")
        if self.rayon != self.openmp:
            said = f"Rayon {said}, OpenMP {_of(self.openmp, 'thread')}"
        most = max(self.rayon.amount, self.openmp.amount)
        return said + (", more than the cores" if most > self.allowed.cores.amount else "")

    def _parts(self, stage: str) -> Iterator[str]:
        """What of the mode counts for a stage."""
        reads, writes = stage in ("tokenize", "train-tokenizer"), stage in ("pack", "pack-part")
        if reads or writes:
            yield f"{self.mode.name} ({self._why_mode()})"
        if reads:
            by = "" if self.rows.by != ROWS else f" ({ROWS})"
            yield (
                f"batches of {self.mode.batch_bytes // MIB} MiB or {self.rows.amount:,} "
                f"documents{by}, {self.mode.ahead} made ahead"
            )
        if self.writer_rows and (writes or stage in ("tokenize", "fetch")):
            yield f"up to {self.writer_rows:,} rows wait to be written ({WRITER_ROWS})"
        elif writes or stage == "tokenize":
            size = self.mode.waiting_bytes // MIB
            yield (
                f"up to {size} MiB wait to be written" if size else "one batch waits to be written"
            )
        if writes and self.mode.whole_files:
            yield f"up to {self._most_whole() / GB:.1f} GB of token shards are read beforehand"

    def _why_mode(self) -> str:
        much, some = (size // GB for size, _ in MODES[:-1])
        return {
            IN_MEMORY: f"{much} GB free or more",
            BALANCED: f"{some} to {much} GB free",
            FROM_DISK: f"less than {some} GB free",
        }[self.mode]


def _of(told: Told, unit: str, plural: str = "s") -> str:
    return f"{told.amount} {unit}{plural if told.amount > 1 else ''} ({told.by})"


# Choosing


def overrides(environ: Mapping[str, str]) -> dict[str, int]:
    """What the user's variables say. Raises UserError for one that is no positive number."""
    found = {}
    for name in VARIABLES:
        text = environ.get(name, "").strip()
        if text and not (text.isdecimal() and int(text) > 0):
            raise UserError(
                f"{name}: {text!r} in the environment is no positive whole number; give one, or "
                "unset it and have it chosen by the machine"
            )
        if text:
            found[name] = int(text)
    return found


def choose(allowed: Allowed, given: Mapping[str, int], threads: int = 0) -> Settings:
    """given: what `overrides` found; threads: those of the job by --threads, 0 for all cores."""
    workers = allowed.cores
    if threads and threads <= workers.amount:
        workers = Told(threads, "--threads")
    if PROCESSES in given:
        workers = Told(given[PROCESSES], PROCESSES)
    rayon = Told(given[RAYON], RAYON) if RAYON in given else workers
    openmp = workers
    # Snakemake sets it to a job's threads, which nobody wished for.
    if OPENMP in given and given[OPENMP] != threads:
        openmp = Told(given[OPENMP], OPENMP)
    mode = next(mode for size, mode in MODES if allowed.free >= size)
    rows = Told(given[ROWS], ROWS) if ROWS in given else Told(BATCH_ROWS, mode.name)
    return Settings(allowed, workers, rayon, openmp, mode, rows, given.get(WRITER_ROWS))


def asked(otherwise: int) -> int:
    """The threads that jobs ask for: as many as the user says, or `otherwise`."""
    return overrides(os.environ).get(PROCESSES, otherwise)


def _class(name: str, cores: int, memory: int) -> Allowed:
    """Of the smallest machine of a class; a tenth of its memory is the system's."""
    by = f"class {name}"
    return Allowed(Told(cores, by), Told(memory, by), memory * 9 // 10)


# As guides to training sort machines: 4 to 8 cores, 16 to 32, and 32 or more.
CLASSES = {
    name: _class(name, cores, memory)
    for name, cores, memory in (
        ("small", 4, 32 * GB),
        ("middle", 16, 64 * GB),
        ("large", 32, 128 * GB),
    )
}

_chosen: Settings | None = None


def settle(stage: str, threads: int) -> Settings:
    """Choose the settings of this process, for one stage of the command line.

    DATASET_NUM_PROC counts where a data set is read: packing takes one thread, and what a
    training comes to can depend on its threads.
    """
    given = overrides(os.environ)
    if stage not in SHARED_OUT:
        given.pop(PROCESSES, None)
    return use(choose(here(), given, threads))


def use(settings: Settings) -> Settings:
    global _chosen
    _chosen = settings
    return settings


def settings() -> Settings:
    """Those of this process; chosen now, where nobody did before."""
    return _chosen or use(choose(here(), overrides(os.environ)))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what comes next, instead of giving it back.

    The arrays of each batch would be of new pages otherwise, which the system first fills with
    zeros: up to a fifth of a tokenization job's time.
    """
    import ctypes

    with suppress(AttributeError, OSError):  # neither macOS nor musl has it
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, KEPT_BYTES)


# Looking


def here() -> Allowed:
    """What this process may use of the machine that it runs on."""
    whole = os.cpu_count() or 1
    # macOS knows of no others.
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else whole
    cores = Told(own, "the machine" if own == whole else "CPU affinity")
    memory = psutil.virtual_memory()
    return allowed(os.environ, cores, memory.total, memory.available)


def allowed(
    environ: Mapping[str, str], cores: Told, total: int, available: int, root: Path = Path("/")
) -> Allowed:
    """The smallest of what SLURM, the control groups and the machine leave to a process.

    cores: those that it may run on; total, available: bytes of memory of the machine; root:
    where proc and sys are.
    """
    memory, free = [Told(total, "the machine")], [available]
    counts = [Told(n, name) for name in SLURM_CORES if (n := _slurm(environ, name))]
    for limit, used in _memory_of_groups(root):
        memory.insert(0, Told(limit, "cgroup"))
        free.append(limit - used)
    if size := _slurm_memory(environ, min([*counts, cores], key=_amount).amount):
        memory.insert(0, size)
        free.append(size.amount)
    counts += [Told(number, "cgroup") for number in _cores_of_groups(root)] + [cores]
    least = min(memory, key=_amount)
    return Allowed(min(counts, key=_amount), least, max(0, min(free)))


def _amount(told: Told) -> int:
    return told.amount


def _slurm(environ: Mapping[str, str], name: str) -> int:
    """A number that SLURM set, 0 where there is none."""
    text = environ.get(name) or environ.get(KEPT + name) or ""
    return int(text) if text.isdecimal() else 0


def _slurm_memory(environ: Mapping[str, str], cores: int) -> Told | None:
    whole, one = SLURM_MEMORY
    if size := _slurm(environ, whole):
        return Told(size * MIB, whole)
    if size := _slurm(environ, one):
        return Told(size * cores * MIB, one)
    return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control group of this process and of those above it, v1 or v2.

    In a container the path may be that on its host, of which only the last of these, the
    top, is there.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        names = [name for name in path.split("/") if name not in ("", "..")]
        for count in range(len(names), -1, -1):
            yield top.joinpath(*names[:count])


def _cores_of_groups(root: Path) -> Iterator[int]:
    """A share of a core lets another thread run now and then, so it counts as one."""
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = (
                _text(folder / f"cpu.cfs_{of}_us").strip() for of in ("quota", "period")
            )
        if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
            yield max(1, math.ceil(int(quota) / int(period)))


def _memory_of_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each group that has a limit. What is kept of files in memory
    is not in use: it goes when the memory is needed."""
    for folder in _groups(root, "memory"):
        limit = _first(folder, ("memory.max", "memory.limit_in_bytes"))
        if limit is None:
            continue
        used = _first(folder, ("memory.current", "memory.usage_in_bytes")) or 0
        stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
        kept = ("inactive_file", "active_file")
        cached = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in kept)
        yield limit, max(0, used - cached)


def image() -> dict[str, str] | None:
    """The container image that this process runs in: its file's name, and its checksum where
    it was built here. None outside of one."""
    path = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not path:
        return None
    found = {"name": Path(path).name}
    with suppress(OSError, ValueError, KeyError):
        found["blake3"] = read_json(beside(path))["blake3"]
    return found


def _first(folder: Path, names: Iterable[str]) -> int | None:
    """The number in the first of these files that is there and holds one."""
    found = (_text(folder / name).strip() for name in names)
    return next((int(text) for text in found if text.isdecimal()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
