"""What the ranks of a training run tell each other. Every rank must call each of these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from ..errors import UserError
from . import ranks

# For a rank that hangs; one that ends is seen at once.
TIMEOUT = timedelta(minutes=30)
# Of gloo, of NCCL, and of the store where the ranks met; either may also fail for other reasons.
LOST = re.compile(
    r"connection (closed|reset|refused)|closed the connection|broken pipe|timed? ?out|"
    r"ncclRemoteError|remote process exited|failed to recv|recvValue",
    re.IGNORECASE,
)


@contextmanager
def group() -> Iterator[None]:
    """The process group of this run's ranks; nothing where there is one rank.

    NCCL on GPUs, one for each rank of a machine; else gloo. Raises UserError where a
    machine has too few GPUs, and where another rank ended.
    """
    if ranks.count() == 1:
        yield
        return
    cuda, (number, here) = torch.cuda.is_available(), ranks.local()
    if cuda:
        if torch.cuda.device_count() < here:
            raise UserError(
                f"training.processes_per_node: {here} processes need a GPU each, and there are "
                f"{torch.cuda.device_count()} here; ask for more GPUs, or set it lower"
            )
        torch.cuda.set_device(number)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        # What comes after it are places in the source of PyTorch.
        reason = " ".join(str(error).partition("Exception raised from")[0].split())
        raise UserError(
            f"lost the connection to another rank, which has probably ended ({reason})"
        ) from None
    dist.destroy_process_group()


def summed(values: dict[str, float]) -> dict[str, float]:
    """The sums over all ranks; integers below 2**53 stay exact."""
    if ranks.count() == 1:
        return values
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def from_first(value: Any) -> Any:
    """What the first rank gives, on every rank."""
    if ranks.count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """What each rank gives, in their order."""
    if ranks.count() == 1:
        return [value]
    found: list[Any] = [None] * ranks.count()
    dist.all_gather_object(found, value)
    return found


def highest(values: list[int]) -> list[int]:
    """The highest of each over all ranks. No GPU is waited for."""
    if ranks.count() == 1:
        return values
    found = torch.tensor(values)
    dist.all_reduce(found, dist.ReduceOp.MAX, _between_processes())
    return found.tolist()


@cache
def _between_processes() -> dist.ProcessGroup | None:
    """A group of all ranks for what is not on a GPU."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
