"""Where a loss or a gradient that is not finite came from: the batch, its rows, their documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.json_files import read_json
from ..caches.view import PairView, View
from . import collectives
from .collate import Split

MOST_NAMED = 8  # rows or documents in a message


@dataclass(frozen=True)
class Bad:
    """The first step that had one, and the numbers of the rows of the batch or of the step."""

    step: int
    what: str
    rows: list[int]


class Watch:
    """Keeps the losses of this rank's batches and the gradient norm of each step.

    They stay on their device, so that no step waits for it, until somebody asks.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[list[int], torch.Tensor]] = []
        self._steps: list[tuple[int, list[tuple[list[int], torch.Tensor]], Any]] = []

    def add_batch(self, rows: list[int], loss: torch.Tensor) -> None:
        self._batches.append((rows, loss))

    def end_step(self, step: int, norm: Any) -> None:
        self._steps.append((step, self._batches, norm))
        self._batches = []

    def clear(self) -> None:
        self._steps.clear()

    def first_bad(self, norms: bool) -> Bad | None:
        """Of all ranks; every rank calls this. norms: whether an infinite norm is bad."""
        found = [bad for bad in collectives.gathered(self._first_bad(norms)) if bad]
        if not found:
            return None
        step = min(bad.step for bad in found)
        found = [bad for bad in found if bad.step == step]
        of_loss = [bad for bad in found if bad.what == "loss"] or found
        return Bad(step, of_loss[0].what, [row for bad in of_loss for row in bad.rows])

    def _first_bad(self, norms: bool) -> Bad | None:
        for step, batches, norm in self._steps:
            for rows, loss in batches:
                if not torch.isfinite(loss).all():
                    return Bad(step, "loss", rows)
            if norms and not torch.isfinite(torch.as_tensor(norm)).all():
                return Bad(step, "gradient", [row for rows, _ in batches for row in rows])
        return None


def describe(split: Split, cache: Path, rows: list[int]) -> str:
    """Rows of train as a person finds them; of a view also the rows of its sources."""
    numbers = sorted(split.in_cache(rows))
    said = f"{_listed(list(map(str, numbers)))} of train in {cache}"
    if isinstance(split.all_rows, View | PairView):
        files: dict[str, list[str]] = {}
        for found in read_json(cache / "cache.json").get("sources", {}).values():
            for file in found:
                for shard in file["shards"]:
                    files.setdefault(shard["tokens"], []).append(file["path"])

        def named(path: str, before: int) -> str:
            return (files.get(Path(path).stem, [])[before:] or [path])[0]

        places = split.all_rows.places(numbers, named)
        of = [f"{_listed(list(map(str, found)))} of {file}" for file, found in places.items()]
        said += f", made of {', '.join(of)}"
    return f"{said} (counted from 0)"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{'row' if len(names) == 1 else 'rows'} {shown}{more}"
