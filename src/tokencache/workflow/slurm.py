"""SLURM, as far as this workflow asks it anything itself."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

DOCS = "see docs/cluster.md"
LOOKS = 3  # in the time that squeue remembers a job, so that one or two may fail
USUAL_AGE = 300  # seconds in which squeue remembers it, unless slurm.conf says otherwise
SHORTEST = 5  # seconds between looks that a scheduler can be asked for
WARNING_SECONDS = 120  # in which a training writes a checkpoint before its time is over


def nodes() -> str:
    """The nodes of the job that this process is of, as SLURM writes them, or this machine."""
    told, job = os.environ.get("SLURM_JOB_NODELIST"), os.environ.get("SLURM_JOB_ID")
    if told is None and job and shutil.which("scontrol"):  # Snakemake took the variable away
        found = _run("scontrol", "show", "job", "--oneliner", job).stdout
        told = next(iter(re.findall(r"\bNodeList=(\S+)", found)), None)
    return told or socket.gethostname()


@dataclass(frozen=True)
class Polling:
    """How SLURM is asked what became of the jobs.

    command: sacct, or squeue where that has no records. longest: the most seconds between two
    looks, so that no job is forgotten between them, or None where none is forgotten.
    """

    command: str
    longest: int | None


def polling(seconds: int) -> Polling:
    """How to ask SLURM; seconds: between two looks while jobs end, which is the shortest.

    Raises UserError where neither command will do: a run would wait for ever for jobs
    that ended long ago, or take those that went well for failed ones.
    """
    for program in ("sbatch", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise UserError(
                f"there is no {program} on PATH: jobs go to SLURM (`--profile slurm`, `--executor "
                "slurm`) only from a machine that has its commands, such as a login node"
            )
    if shutil.which("sacct") and _run("sacct", "--noheader", "--starttime", "now").returncode == 0:
        return Polling("sacct", None)
    found = _run("scontrol", "show", "config")
    if found.returncode:
        raise UserError(f"SLURM does not answer: {found.stderr.strip()}")
    remembered = re.search(r"^MinJobAge\s*=\s*(\d+)", found.stdout, re.MULTILINE)
    age = int(remembered[1]) if remembered else USUAL_AGE
    if age == 0:  # nothing is forgotten
        return Polling("squeue", None)
    longest = age // LOOKS
    if seconds > longest and longest < SHORTEST:
        raise UserError(
            f"sacct has no records here, and squeue forgets jobs {age} s after their end "
            "(MinJobAge): too soon to see it. Ask the administrator for a MinJobAge of "
            f"{USUAL_AGE} (slurm.conf), which is SLURM's own, or for accounting (slurmdbd); {DOCS}"
        )
    if seconds > longest:
        raise UserError(
            f"sacct has no records here, and squeue forgets jobs {age} s after their end "
            f"(MinJobAge): too soon to look every {seconds} s; set "
            f"slurm-init-seconds-before-status-checks to {longest} at most in slurm/config.yaml, "
            f"{DOCS}"
        )
    return Polling("squeue", longest)


def at_most(between: property, longest: int | None) -> property:
    """`next_seconds_between_status_checks` of Snakemake's plugin, within a bound.

    While no job ends the plugin waits longer and longer, up to three minutes.
    """
    if longest is None:
        return between
    return between.getter(lambda executor: min(between.fget(executor), longest))


Answer = tuple[dict[str, str] | None, float | None]
Ask = Callable[[str, Any], Awaitable[Answer]]


def without_lost_jobs(ask: Ask) -> Ask:
    """`query_job_status` of Snakemake's plugin, so that it never waits for ever for a job.

    The plugin forgets its jobs when SLURM does not answer for a while, and goes on waiting
    for a job that was cancelled ("CANCELLED by 1000" says sacct) or preempted, or that squeue
    has forgotten since it was asked last.

    Returns a coroutine function with the same arguments and the same result: the state of
    each job by its number, and seconds. The plugin waits on for jobs without a state.
    """
    seen: set[str] = set()

    async def asked(command: str, logger: Any) -> Answer:
        found, seconds = await ask(command, logger)
        if found is None:
            return {}, 0.0
        states = {job: state.split()[0] for job, state in found.items() if state}
        states |= {job: "CANCELLED" for job, state in states.items() if state == "PREEMPTED"}
        if command.startswith("squeue"):
            # How they ended is unknown. Started again, a job finds what is there already.
            states |= dict.fromkeys(seen - states.keys(), "FAILED")
        seen.update(states)
        return states, seconds

    return asked


def with_a_warning(submit: Callable[..., str]) -> Callable[..., str]:
    """`get_submit_command` of Snakemake's plugin: trainings get SIGTERM before their time is over.

    It goes to what runs in the job, and not to the batch script, with which all would end;
    and so does what a job gets that is preempted with a time of grace. Who asks for another
    signal (`slurm_extra`) gets that.
    """

    def command(job: Any, *given: Any, **more: Any) -> str:
        call = submit(job, *given, **more)
        if job.name != "train" or "--signal" in call:
            return call
        minutes = job.resources.get("runtime")
        seconds = min(WARNING_SECONDS, 15 * minutes) if isinstance(minutes, int) else None
        return f"{call} --signal=TERM@{seconds or WARNING_SECONDS}"

    return command


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True)
