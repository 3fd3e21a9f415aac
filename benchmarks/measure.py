"""Running a command, and what it took."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.05
LIBRARIES = ("tokenizers", "datasets", "transformers", "pyarrow", "numpy", "gigatoken",
             "datatrove", "snakemake")  # fmt: skip


class Failed(Exception):
    """A command that did not work; the message holds the end of its output."""


def run(command: list[str], cwd: Path, log: Path, memory: bool = True) -> dict[str, Any]:
    """Wall seconds, CPU seconds and the peak memory in bytes of a command and its children.

    Memory is the sum of the processes' proportional set sizes (shared pages count once,
    files that are mapped count as far as they are read), looked at every 50 ms.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    os.sync()  # so that nobody writes another one's data
    environment = _environment() | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    peak, seen = 0, {}
    before = os.times()
    with open(log, "w") as stream:
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=cwd, env=environment, stdout=stream, stderr=stream)
        while memory and child.poll() is None:
            peak = max(peak, _look(child.pid, seen))
            time.sleep(POLL_SECONDS)
        code = child.wait()
        seconds = time.perf_counter() - started
    after = os.times()
    if code:
        raise Failed(f"{command[:4]}… ended with {code}: {log.read_text()[-2000:]}")
    # The first counts short processes whole, the second those that nobody waited for.
    cpu = after.children_user + after.children_system - before[2] - before[3]
    cpu = max(cpu, sum(seen.values()))
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}


def output(command: list[str], cwd: Path) -> str:
    """What a command prints on its standard output."""
    done = subprocess.run(command, cwd=cwd, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{command[:4]}… ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """This process's environment, with this checkout's library first."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def _look(pid: int, seen: dict[psutil.Process, float]) -> int:
    """Bytes of memory of a process and its children; their CPU seconds so far go to `seen`."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                total += _proportional(process)
                times = process.cpu_times()
                seen[process] = times.user + times.system
    return total


def _proportional(process: psutil.Process) -> int:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except FileNotFoundError:  # not Linux, or gone
        return process.memory_info().rss
    pss = [line for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(pss[0].split()[1]) * 1024 if pss else 0


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def machine(target: str = "bench", libraries: tuple[str, ...] = LIBRARIES) -> dict[str, Any]:
    """What figures depend on, besides the code. target: of make."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in libraries},
        "commit": _commit(),
        # The load average would still count what ended minutes ago.
        "busy": psutil.cpu_percent(2) / 100,
        "date": time.strftime("%Y-%m-%d"),
        "command": f"make {target} " + " ".join(sys.argv[1:]),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    with suppress(Failed, OSError):
        changed = output(["git", "status", "--porcelain", "src"], ROOT).strip()
        return output(["git", "rev-parse", "--short", "HEAD"], ROOT).strip() + (
            " with changes" if changed else ""
        )
    return "unknown"
