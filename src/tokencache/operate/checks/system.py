"""Cores and memory, as a job that is started here would be allowed them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ...base import limits
from ...base.limits import GB, Allowed
from . import OK, WARN, Finding

LEAST_MEMORY = 4 * GB  # a tokenization job takes 1.5 GB, and Snakemake and the system the rest


def check(found: Allowed) -> Iterator[Finding]:
    """found: machine.here()."""
    whole, cores, memory = os.cpu_count() or 1, found.cores, found.memory
    said = f"{cores.amount} of {whole} may be used; what limits: {cores.by}"
    if cores.amount == 1 and whole > 1:
        yield Finding(
            WARN, "cores", said,
            "ask for more: --cpus-per-task of a SLURM job, or start outside of taskset or the "
            "container that limits it",
        )  # fmt: skip
    else:
        yield Finding(OK, "cores", said)
    said = f"{found.free / GB:.1f} GB free of {memory.amount / GB:.1f} GB; what limits: {memory.by}"
    if found.free < LEAST_MEMORY:
        yield Finding(
            WARN, "memory", said,
            "end what holds it, or ask for more (--mem of a SLURM job); run one job at once: "
            "snakemake --cores 1",
        )  # fmt: skip
    else:
        yield Finding(OK, "memory", said)
    if "SLURM_JOB_ID" in os.environ and not any(
        os.environ.get(name) for name in limits.SLURM_CORES
    ):
        yield Finding(
            WARN, "cores", "a SLURM job that does not say how many CPUs it has",
            "ask for them: --cpus-per-task",
        )  # fmt: skip
