"""Versions against the locks in envs/, and what in the environment slows down or changes things."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...base import limits
from ...errors import UserError
from . import FAIL, OK, WARN, Finding

# What is the same in every image and on a login node, and what training adds.
LOCKS = ("workflow", "train")
NEEDED = ("snakemake", "transformers", "tokenizers", "datasets", "pyarrow")
FASTER = "gigatoken"
LOCKED_PYTHON = (3, 11)
LIBRARIES = (*NEEDED, FASTER, "torch", "numpy")


def versions(envs: Path) -> Iterator[Finding]:
    """envs: the folder with the locks."""
    found = platform.python_version()
    if sys.version_info[:2] == LOCKED_PYTHON:
        yield Finding(OK, "python", found)
    else:
        wanted = ".".join(map(str, LOCKED_PYTHON))
        yield Finding(WARN, "python", f"{found}; the locks are for {wanted}",
                      f"make PYTHON=python{wanted}")  # fmt: skip
    locked = locks(envs)
    if not locked:
        yield Finding(WARN, "locks", f"there are none in {envs}", "start from the checkout")
    for name in (*NEEDED, FASTER, "torch"):
        yield _version(name, locked.get(name))


def locks(envs: Path) -> dict[str, str]:
    """The version of each package."""
    files = (envs / f"{name}.lock" for name in LOCKS)
    text = "\n".join(file.read_text() for file in files if file.exists())
    return dict(re.findall(r"^([\w.-]+)==([^\s+]+)", text, re.MULTILINE))


def _version(name: str, locked: str | None) -> Finding:
    lock = "train" if name == "torch" else "workflow"
    remedy = f"pip install -r envs/{lock}.lock"
    try:
        found = version(name)
    except PackageNotFoundError:
        if name in NEEDED:
            return Finding(FAIL, name, "is not installed", remedy)
        why = "only training needs it" if name == "torch" else "tokenization is slower without it"
        return Finding(WARN, name, f"is not installed here; {why}", remedy)
    if locked is None or found.partition("+")[0] == locked:
        return Finding(OK, name, f"{found}{', as locked' if locked else ''}")
    return Finding(WARN, name, f"{found}; the lock says {locked}, which is what was tested", remedy)


# The environment

YES = ("1", "true", "yes", "on")
NO = ("0", "false", "no", "off")
Test = Callable[[str], bool]


def _is(*words: str) -> Test:
    return lambda value: value.lower() in words


def _any(value: str) -> bool:
    return True


# Variables by name, when they matter, and what they do.
SUSPECTS: dict[str, tuple[Test, str]] = {
    "TOKENIZERS_PARALLELISM": (_is(*NO), "the tokenizers library runs on one thread"),
    "RAYON_NUM_THREADS": (_is("1"), "tokenization runs on one thread"),
    "OMP_NUM_THREADS": (_is("1"), "PyTorch and pyarrow run on one thread in every job"),
    "MKL_NUM_THREADS": (_is("1"), "PyTorch runs on one thread"),
    "OMP_WAIT_POLICY": (_is("active"), "threads that wait take the cores of jobs beside them"),
    "HF_DATASETS_IN_MEMORY_MAX_SIZE": (
        lambda value: value.strip("0") != "", "data sets are read into memory, not mapped"),
    "HF_DATASETS_OFFLINE": (_is(*YES), "no data set can be fetched from a hub"),
    "HF_HUB_OFFLINE": (_is(*YES), "nothing can be fetched from a hub"),
    "TRANSFORMERS_OFFLINE": (_is(*YES), "no tokenizer or model can be fetched from a hub"),
    "CUDA_LAUNCH_BLOCKING": (_is("1"), "every GPU kernel is waited for: much slower"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (_any, "every tensor is allocated anew: much slower"),
    "TORCH_DISTRIBUTED_DEBUG": (_is("detail"), "every collective is checked: slower"),
    "NCCL_DEBUG": (_is("info", "trace"), "NCCL fills the logs"),
    "NCCL_P2P_DISABLE": (_is("1"), "GPUs talk to each other through memory: slower"),
    "NCCL_IB_DISABLE": (_is("1"), "nodes talk over Ethernet, not InfiniBand: slower"),
    "NCCL_SHM_DISABLE": (_is("1"), "ranks of a node talk over the network: slower"),
    "NVIDIA_TF32_OVERRIDE": (_any, "TF32 is not what training.tf32 says: other last digits"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (
        _is("1"), "TF32 is not what training.tf32 says: other last digits"),
    "CUBLAS_WORKSPACE_CONFIG": (_any, "cuBLAS takes slower kernels"),
    "PYTHONHOME": (_any, "Python may load another Python's libraries"),
    "PYTHONOPTIMIZE": (_any, "libraries leave out checks of theirs"),
    "LD_PRELOAD": (_any, "every program loads a library that it does not ask for"),
}  # fmt: skip


def environment(environ: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """cores: that may be used."""
    bad = False
    for name, (matters, why) in SUSPECTS.items():
        value = environ.get(name, "").strip()
        one_core = cores == 1 and name.endswith("_NUM_THREADS")
        if value and matters(value) and not one_core:
            bad = True
            yield Finding(WARN, "environment", f"{name}={value}: {why}", f"unset {name}")
    try:
        given = limits.overrides(environ)
    except UserError as error:
        yield Finding(FAIL, "environment", str(error), "`tokencache env` prints what would fit")
        return
    for name in (limits.PROCESSES, limits.RAYON, limits.OPENMP):
        if given.get(name, 0) > cores:
            bad = True
            yield Finding(
                WARN, "environment", f"{name}={given[name]}, and {cores} cores may be used: "
                "threads wait for each other", f"unset {name}, or see `tokencache env`",
            )  # fmt: skip
    for finding in _strays():
        bad = True
        yield finding
    if not bad:
        yield Finding(OK, "environment", "nothing in it slows down or changes what is made")


def _strays() -> Iterator[Finding]:
    """Libraries that are not those of this Python's environment."""
    own = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        place = os.path.realpath(spec.origin)
        if not any(place.startswith(prefix + os.sep) for prefix in own):
            yield Finding(
                WARN, "environment", f"{name} is taken from {place}, not from {sys.prefix}",
                "look at PYTHONPATH, at ~/.local (PYTHONNOUSERSITE=1 leaves it out), and for a "
                "file or folder of that name where you start",
            )  # fmt: skip
