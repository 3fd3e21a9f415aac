"""Containers and SLURM: only needed where jobs run in images or on a cluster."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from ...errors import UserError
from ...workflow import slurm
from . import FAIL, OK, WARN, Finding, answer

TRIED = (1, 4)  # the version of Apptainer that this workflow was tried with
SHOWN = ("usr", "bin", "lib", "lib64")
SINFO = "%P %a %D %c %m %l"
NO_CLUSTER = "configuration source"  # what sinfo says on a machine of none
ONLY_IMAGES = "only jobs in images need it (docs/containers.md)"


def containers(images: Path) -> Iterator[Finding]:
    """images: the folder in which images of this workflow may be."""
    if shutil.which("apptainer") is None:
        other = shutil.which("singularity")
        said = "there is no apptainer on PATH" + (f", only {other}" if other else "")
        yield Finding(
            WARN, "containers", f"{said}; {ONLY_IMAGES}",
            "`module load apptainer`, or put its folder on PATH",
        )  # fmt: skip
        return
    well, said = answer("apptainer", "--version")
    if not well:
        yield Finding(WARN, "containers", f"apptainer: {said}; {ONLY_IMAGES}", "install it anew")
        return
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < TRIED:
        yield Finding(
            WARN, "containers", f"{said}: older than what this was tried with",
            f"take Apptainer {'.'.join(map(str, TRIED))} or newer",
        )  # fmt: skip
    else:
        yield Finding(OK, "containers", said)
    yield _runs(images)
    yield _namespaces()


def _runs(images: Path) -> Finding:
    """Whether a container can be started: of an image that is there, or of this system's files."""
    image = next(iter(sorted(images.glob("*.sif"))), None)
    with tempfile.TemporaryDirectory() as box:
        words = []
        if image is None:
            for name in (*SHOWN, "dev", "proc", "sys", "tmp", "etc", "root", "home", "var/tmp"):
                Path(box, name).mkdir(parents=True)
            shown = [f"/{name}" for name in SHOWN if Path("/", name).is_dir()]
            words = ["--containall", "--bind", ",".join(shown)]
        where = str(image or box)
        well, said = answer("apptainer", "--silent", "exec", *words, where, "/bin/true", seconds=60)
    name = image.name if image else "a folder as image"
    if well:
        return Finding(OK, "containers", f"one can be started ({name})")
    return Finding(
        WARN, "containers", f"none can be started ({name}): {said}; {ONLY_IMAGES}",
        "unprivileged users need user namespaces, or an Apptainer that is installed setuid: ask "
        "the administrator",
    )  # fmt: skip


def _namespaces() -> Finding:
    well, said = answer("unshare", "--user", "--map-root-user", "true")
    if well:
        return Finding(OK, "user namespaces", "can be made, so images can be built here")
    return Finding(
        WARN, "user namespaces", f"can't be made ({said}); {ONLY_IMAGES}",
        "build images elsewhere and copy them to images/",
    )  # fmt: skip


def cluster(profile: Path) -> Iterator[Finding]:
    """profile: slurm/config.yaml of the checkout."""
    if shutil.which("sinfo") is None:
        yield Finding(OK, "SLURM", "none here: jobs run on this machine")
        return
    well, said = answer("sinfo", "--noheader", f"--format={SINFO}")
    if not well:
        yield Finding(
            WARN if NO_CLUSTER in said else FAIL, "SLURM", f"sinfo does not answer: {said}",
            "start from a login node of the cluster, or without --profile slurm",
        )  # fmt: skip
        return
    yield partitions(said)
    yield _records(profile)


def partitions(said: str) -> Finding:
    """said: by sinfo, of each partition and kind of nodes a line in the order of SINFO."""
    found = []
    for line in said.splitlines():
        name, state, nodes, cpus, memory, limit = line.split()
        if state == "up":
            gigabytes = int(memory.removesuffix("+")) / 1000
            found.append(f"{name} ({nodes} of {cpus} CPUs, {gigabytes:.0f} GB, {limit})")
    if not found:
        return Finding(WARN, "SLURM", "no partition is up", "ask the administrator")
    return Finding(OK, "SLURM", f"partitions (nodes, time limit): {', '.join(found)}")


def _records(profile: Path) -> Finding:
    """Which command can say what became of a job."""
    name, seconds = "slurm-init-seconds-before-status-checks", 10
    if profile.exists():
        seconds = (yaml.safe_load(profile.read_text()) or {}).get(name, seconds)
    try:
        polling = slurm.polling(seconds)
    except UserError as error:
        return Finding(FAIL, "SLURM records", str(error), "see docs/cluster.md")
    if polling.command == "sacct":
        return Finding(OK, "SLURM records", "sacct answers")
    return Finding(OK, "SLURM records", "sacct has none; squeue is asked instead, and that will do")
