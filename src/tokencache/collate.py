"""Rows of a cache to batches of tensors, masked by length and never by token id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from .gather import IGNORED
from .view import View

MULTIPLE = 8  # widths that are multiples of this are fast on tensor cores
COUNTS = "counts"  # a batch's key that is for the trainer, not for the model
COLUMNS = ("input_ids", "labels", "position_ids", "seq_lengths")
NO_ROW = {name: np.zeros(0, np.int64) for name in COLUMNS}


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
    """

    def __init__(self, pad_id: int, max_length: int, packed: bool) -> None:
        self.pad_id, self.max_length, self.packed = pad_id, max_length, packed

    def __call__(self, rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(1, *lengths)
        width = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, self.max_length))
        batch: dict[str, Any] = {
            "input_ids": _padded([row["input_ids"] for row in rows], width, self.pad_id),
            "labels": _padded([row["labels"] for row in rows], width, IGNORED),
        }
        documents = sum(length > 0 for length in lengths)
        if self.packed:
            positions = [_to_width(row["position_ids"], width) for row in rows]
            batch |= {"position_ids": _padded(positions, width, 0), "use_cache": False}
            documents = sum(len(row["seq_lengths"]) for row in rows)
        else:
            # A row that attends to nothing has no softmax.
            inside = np.arange(width) < np.maximum(lengths, 1)[:, None]
            batch["attention_mask"] = torch.from_numpy(inside.astype(np.int64))
        batch[COUNTS] = {"tokens": sum(lengths), "documents": documents}
        return batch


def _padded(rows: list[np.ndarray], width: int, fill: int) -> torch.Tensor:
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

    tokens and targets (tokens that are predicted) count those rows; `left_out` is
    how many others there were.
    """

    rows: datasets.Dataset | View
    packed: bool
    tokens: int
    targets: int
    left_out: int

    def __len__(self) -> int:
        return len(self.rows)


def split(rows: datasets.Dataset | View) -> Split:
    """Leave out rows without a target: a step of only such rows would divide by zero.

    Raises UserError where a token shard of a view is missing.
    """
    if isinstance(rows, View):
        rows.check()
        lengths, targets = rows.lengths(), rows.targets()
    else:
        lengths, targets = _count(rows)
        rows = rows.with_format("numpy")
    kept = targets > 0
    return Split(
        rows=rows if kept.all() else rows.select(np.flatnonzero(kept)),
        packed="position_ids" in rows.column_names,
        tokens=int(lengths[kept].sum()),
        targets=int(targets.sum()),
        left_out=int((~kept).sum()),
    )


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
