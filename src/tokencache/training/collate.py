"""Rows of a cache to batches of tensors, masked by length and never by token id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from ..caches.rows import IGNORED
from ..caches.view import PairView, View

MULTIPLE = 8  # widths that are multiples of this are fast on tensor cores
# Keys of a batch, and of a row, that are for the trainer, not for the model.
COUNTS, NUMBERS, NUMBER, LENGTHS = "counts", "numbers", "number", "lengths"
COLUMNS = ("input_ids", "labels", "position_ids", "seq_lengths")
NO_ROW = {name: np.zeros(0, np.int64) for name in COLUMNS}


def padded_width(longest: int | np.ndarray, max_length: int) -> int | np.ndarray:
    """The width of a batch by the length of its longest row."""
    rounded = -(-np.maximum(longest, 1) // MULTIPLE) * MULTIPLE
    return np.maximum(longest, np.minimum(rounded, max_length))


class Collator:
    """Pads rows to one width: batches of (rows, width) int64 tensors.

    The width is the longest row's, rounded up to a multiple of 8 but never above
    `max_length`, which may be all the positions that the model has. What is padding
    is known from the rows' lengths: a pad token that is also the end-of-text token
    stays a target where it stands in a row.

    Unpacked rows get an attention_mask. Packed ones must not have one: transformers
    tells documents apart by position_ids that restart, and only without a mask and
    without a cache. Their padding is one more document at the end of the row.

    NO_ROW stands for a row that is not there: it is all padding, and counts for nothing.

    COUNTS holds what is in a batch: rows' tokens, and of these the targets; documents and
    the sum of their squared lengths, which attention takes; and the tokens that are
    computed, padding included. NUMBERS are those of the rows, where these have them. LENGTHS are
    each row's tokens, told where `tell_lengths` is set.
    """

    def __init__(self, pad_id: int, max_length: int, packed: bool) -> None:
        self.pad_id, self.max_length, self.packed = pad_id, max_length, packed
        self.tell_lengths = False

    def __call__(self, rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        lengths = [len(row["input_ids"]) for row in rows]
        width = int(padded_width(max(1, *lengths), self.max_length))
        batch: dict[str, Any] = {
            "input_ids": padded([row["input_ids"] for row in rows], width, self.pad_id),
            "labels": padded([row["labels"] for row in rows], width, IGNORED),
        }
        documents = np.array([length for length in lengths if length])
        if self.packed:
            positions = [_to_width(row["position_ids"], width) for row in rows]
            batch |= {"position_ids": padded(positions, width, 0), "use_cache": False}
            documents = np.concatenate([row["seq_lengths"] for row in rows])
        else:
            # A row that attends to nothing has no softmax.
            inside = np.arange(width) < np.maximum(lengths, 1)[:, None]
            batch["attention_mask"] = torch.from_numpy(inside.astype(np.int64))
        batch[COUNTS] = {
            "tokens": sum(lengths),
            "targets": int((batch["labels"][:, 1:] != IGNORED).sum()),
            "documents": len(documents),
            "squares": int((documents.astype(np.int64) ** 2).sum()),
            "computed": len(rows) * width,
        }
        if numbers := [row[NUMBER] for row in rows if NUMBER in row]:
            batch[NUMBERS] = numbers
        if self.tell_lengths:
            batch[LENGTHS] = lengths
        return batch


def padded(rows: list[np.ndarray], width: int, fill: int) -> torch.Tensor:
    """(rows, width) int64; what a row lacks is filled."""
    found = np.full((len(rows), width), fill, np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return torch.from_numpy(found)


def _to_width(positions: np.ndarray, width: int) -> np.ndarray:
    """Positions with those of the padding, which starts at 0 again."""
    return np.concatenate([positions, np.arange(width - len(positions))])


@dataclass(frozen=True)
class Split:
    """The rows of one split that have something to predict, memory-mapped.

    lengths: (rows,) int64 tokens of each, or of pairs (2, rows) of the sources and of the
    targets. tokens and targets (tokens that are predicted) count those rows. all_rows: with
    those that have none; kept: their numbers among all of these, or None where they are all
    of them.
    """

    rows: datasets.Dataset | View | PairView
    packed: bool
    lengths: np.ndarray
    targets: int
    all_rows: datasets.Dataset | View | PairView
    kept: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def left_out(self) -> int:
        return len(self.all_rows) - len(self.rows)

    def in_cache(self, numbers: list[int]) -> list[int]:
        """The numbers that rows have in the cache."""
        return numbers if self.kept is None else self.kept[numbers].tolist()


def split(rows: datasets.Dataset | View, made: dict[str, Any] | None = None) -> Split:
    """Leave out rows without a target: a step of only such rows would divide by zero.

    made: what cache.json says of the split; where it says which rows those are, no token is
    looked at. Raises UserError where a token shard of a view is missing.
    """
    view = isinstance(rows, View)
    if view:
        rows.check()
    if made and "targets" in made and len(rows) == made["rows"]:
        lengths = rows.lengths() if view else lengths_of(rows, "labels")
        total, without = made["targets"], made["rows_without_targets"]
    else:  # a cache that was made before cache.json said it
        lengths, targets = (rows.lengths(), rows.targets()) if view else _count(rows)
        total, without = int(targets.sum()), np.flatnonzero(targets == 0)
    if not view:
        rows = rows.with_format("numpy")
    kept = np.delete(np.arange(len(rows)), without) if len(without) else None
    return Split(
        rows=rows if kept is None else rows.select(kept),
        packed="position_ids" in rows.column_names,
        lengths=lengths if kept is None else lengths[kept],
        targets=total,
        all_rows=rows,
        kept=kept,
    )


def lengths_of(rows: datasets.Dataset, column: str) -> np.ndarray:
    """(rows,) int64 of a list column, for which its offsets alone are read."""
    found = [np.zeros(0, np.int64)]
    for table in rows.select_columns([column]).with_format("arrow").iter(2**20):
        found += [chunk.value_lengths().to_numpy() for chunk in table.column(column).chunks]
    return np.concatenate(found).astype(np.int64)


def _count(rows: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of each row, (rows,) int64; the first token has no prediction."""
    lengths, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for table in rows.select_columns(["labels"]).with_format("arrow").iter(1000):
        for chunk in table.column("labels").chunks:
            length = chunk.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            ends = np.cumsum(length)
            counted = _flat(chunk) != IGNORED
            counted[(ends - length)[length > 0]] = False
            before = np.concatenate([[0], np.cumsum(counted)])
            lengths.append(length)
            targets.append(before[ends] - before[ends - length])
    return np.concatenate(lengths), np.concatenate(targets)


def _flat(chunk: pa.ListArray) -> np.ndarray:
    return chunk.flatten().to_numpy(zero_copy_only=False)
