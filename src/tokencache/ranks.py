"""Which process of a training run this one is: torchrun says so in the environment."""

from __future__ import annotations

import os
import socket
import threading
import time

PATIENCE = 10.0  # seconds in which what stops the first rank too has stopped all


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
