"""Which rows of a cache make up which batch, in which order, and which of them a rank takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from ..caches.best_fit import stable_order
from ..caches.windows import ranges
from .collate import NO_ROW, NUMBER, Split, padded_width


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps in an epoch and in all."""

    in_epoch: int
    total: int


@dataclass(frozen=True)
class Share:
    """What one rank takes of an optimizer step: so many rows at once, so many times."""

    rows: int
    times: int


def share(training: dict[str, Any], processes: int) -> Share:
    """Ranks share the rows of a step, so that a step is the same however many they are."""
    size = training["per_device_train_batch_size"]
    rows = size * training["gradient_accumulation_steps"] // processes
    at_once = max(n for n in range(1, size + 1) if rows % n == 0)
    return Share(at_once, rows // at_once)


class Batches(Sampler[list[int]]):
    """The batches of one rank in an epoch, as lists of row numbers: its own of each step's.

    lengths: (rows,) tokens of each row, or of pairs (2, rows), of which each side is padded
    to a width of its own; the wider one counts as a pair's width. The rows of a step follow
    from the settings, the seed and the epoch alone, whatever the number of processes:

    - without `max_tokens` it has per_device_train_batch_size times
      gradient_accumulation_steps rows, which ranks share as `share` says;
    - with it, it has gradient_accumulation_steps batches, each of at most `max_tokens`
      tokens (of pairs, on each side), padding included, of which each rank takes equally
      many, whole.

    Grouped by length, rows of about one width make up a batch: rows of the same width
    come together by chance, and batches stand in random order. An epoch has equally many
    batches each time. `times` is how many of them make a step on one rank. Where an epoch
    ends with fewer batches than there are ranks, a batch of a row that is not there
    makes them up.
    """

    def __init__(
        self, training: dict[str, Any], lengths: np.ndarray, max_length: int, packed: bool,
        processes: int = 1, rank: int = 0,
    ) -> None:  # fmt: skip
        self._sides = np.atleast_2d(padded_width(lengths, max_length))
        self._widths = self._sides.max(axis=0)
        self._seed, self._processes, self._rank = training["seed"], processes, rank
        self._tokens = int(lengths.sum())
        self.budget: int | None = training["max_tokens"]
        grouped, rows = training["group_by_length"], len(self._widths)
        if grouped is None:
            grouped = self.budget is not None
        self.grouped: bool = grouped and not packed
        self._groups = None
        if self.budget is None:
            part = share(training, processes)
            self.rows: int | None = part.rows
            self.times = part.times
            self._edges = _every(part.rows, rows)
            if self.grouped:
                self._groups = _every(training["per_device_train_batch_size"], rows)
        else:
            self.times = training["gradient_accumulation_steps"] // processes
            self.rows = None
            if self.grouped:
                self._groups = _within(np.sort(self._widths)[::-1], self.budget)
            else:
                self.rows = max(1, self.budget // int(self._widths.max()))
                self._edges = _every(self.rows, rows)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._drawn: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def in_all(self) -> int:
        """Batches of an epoch on all ranks together."""
        edges = self._groups if self.rows is None else self._edges
        return len(edges) - 1

    def __len__(self) -> int:
        return -(-self.in_all // self._processes)

    def __iter__(self) -> Iterator[list[int]]:
        order, edges = self._draw()
        for place in range(len(self)):
            number = place * self._processes + self._rank
            if number < self.in_all:
                yield order[edges[number] : edges[number + 1]].tolist()
            else:
                yield [len(order)]

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) numbers of rows in this epoch's order, (batches + 1,) where batches begin."""
        if self._drawn is None:
            # As transformers.Trainer shuffles, on whose order the results of older runs depend.
            random = torch.Generator().manual_seed(self._seed + self.epoch)
            order = torch.randperm(len(self._widths), generator=random).numpy()
            if self._groups is None:
                self._drawn = order, self._edges
            else:
                self._drawn = self._grouped(order, random)
        return self._drawn

    def _grouped(self, order: np.ndarray, random: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        order = _widest_first(order, self._sides)
        first, sizes = self._groups[:-1], np.diff(self._groups)
        # The last group has what was left over, and would make the steps after it differ.
        shuffled = torch.randperm(len(sizes) - 1, generator=random).numpy()
        shuffled = np.append(shuffled, len(sizes) - 1)
        order = order[ranges(first[shuffled], sizes[shuffled])]
        if self.rows is None:
            return order, np.concatenate([[0], np.cumsum(sizes[shuffled])])
        return order, self._edges

    def schedule(self, training: dict[str, Any]) -> Schedule:
        """As transformers.Trainer counts steps; an epoch's last one may be smaller."""
        in_epoch = -(-len(self) // self.times)
        if training["max_steps"] > 0:
            return Schedule(in_epoch, training["max_steps"])
        return Schedule(in_epoch, math.ceil(training["num_train_epochs"] * in_epoch))

    def about(self, training: dict[str, Any]) -> str:
        """What a step is made of, and why, in the words of the log."""
        many = training["gradient_accumulation_steps"]
        if self.budget is None:
            size = f"{training['per_device_train_batch_size'] * many:,} rows a step"
        else:
            side = " a side" if len(self._sides) > 1 else ""
            size = f"up to {self.budget:,} tokens{side} with their padding, {many:,} a step"
        how = "rows of like length together" if self.grouped else "rows in random order"
        return f"{size}, {how}; {self.padding():.1%} of an epoch is padding"

    def shared(self) -> str:
        """What each of several processes takes."""
        if self.budget is None:
            mine = self.rows * self.times
            return (f"of a step's {mine * self._processes:,} rows each takes {mine:,}, "
                    f"{self.rows:,} at once")  # fmt: skip
        return f"of a step's {self.times * self._processes:,} batches each takes {self.times:,}"

    def padding(self) -> float:
        """The share of this epoch's tokens that is padding."""
        order, edges = self._draw()
        widest = np.maximum.reduceat(self._sides[:, order], edges[:-1], axis=1)
        return 1 - self._tokens / int((widest * np.diff(edges)).sum())


def _widest_first(order: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Rows by width, and those of the same width in the order that they had.

    sides: (1, rows) widths, or (2, rows) of pairs. Pairs of the same width are ordered by
    their sides, so that the narrower ones of a batch are about as wide as each other too.
    """
    keys = sides if len(sides) == 1 else [*sides, sides.max(axis=0)]
    for widths in keys:  # the last one counts most
        order = order[stable_order(widths.max() - widths[order])]
    return order


def _every(size: int, rows: int) -> np.ndarray:
    """Where batches of `size` rows begin, and where the last one ends."""
    return np.append(np.arange(0, rows, size), rows)


def _within(widths: np.ndarray, budget: int) -> np.ndarray:
    """The same of batches of as many rows as fit a budget; widths: the widest first."""
    edges = [0]
    while edges[-1] < len(widths):
        edges.append(edges[-1] + max(1, budget // int(widths[edges[-1]])))
    edges[-1] = len(widths)
    return np.array(edges)


def evaluation_batches(
    split: Split, training: dict[str, Any], max_length: int
) -> list[np.ndarray | range]:
    """The rows of each batch of the validation split: all of them once, in a fixed order."""
    size, rows = training["per_device_eval_batch_size"], len(split)
    if training["max_tokens"] is None:
        return [range(start, min(rows, start + size)) for start in range(0, rows, size)]
    sides = np.atleast_2d(padded_width(split.lengths, max_length))
    order = _widest_first(np.arange(rows), sides)
    edges = _within(sides.max(axis=0)[order], training["max_tokens"])
    return np.split(order, edges[1:-1])


class Rows:
    """The rows of a split with their numbers in it, and after its end rows that are not there."""

    def __init__(self, split: Split) -> None:
        self._rows = split.rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        there = [place for place in places if place < len(self)]
        rows = self._rows.__getitems__(there) if there else []
        found = [row | {NUMBER: place} for row, place in zip(rows, there, strict=True)]
        return found + [NO_ROW] * (len(places) - len(there))
