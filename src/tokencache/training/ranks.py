"""Which process of a training run this one is: torchrun says so in the environment."""

from __future__ import annotations

import os
import socket
import threading
import time

PATIENCE = 10.0  # seconds in which what stops the first rank too has stopped all

# What a launcher tells its ranks.
RANK_PREFIXES = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_", "PALS_", "ACCELERATE_")
RANK_NAMES = {
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "OMP_NUM_THREADS", "TOKENCACHE_PLAN",
}  # fmt: skip
KEPT = {"SLURM_CONF"}


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def count() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local() -> tuple[int, int]:
    """Which of this machine's ranks this is, and how many there are on it."""
    if not launched():
        return 0, 1
    return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])


def machine() -> str:
    """This machine as SLURM calls it, or as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def first() -> bool:
    """Whether this process speaks, writes and publishes for all."""
    return rank() == 0


def in_turn(message: str) -> str:
    """A message that says whose it is, held back until the first rank could say the same.

    What stops every rank is then said once: torchrun ends the others with the first.
    """
    if first():
        return message
    time.sleep(PATIENCE)
    return f"rank {rank()} on {machine()}: {message}"


def end_with_parent() -> None:
    """Let this process end when torchrun does: a hard kill of that one leaves it alone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def environment_of_none() -> dict[str, str]:
    """This process's environment, without what makes it a rank."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not (name in RANK_NAMES or name.startswith(RANK_PREFIXES))
    }
