"""Ranges in documents: of characters, or of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Span = tuple[int, int]  # [start, stop)


@dataclass(frozen=True)
class Spans:
    """Ranges [start, stop) in each of some documents, in order, none of them empty.

    ranges: (k, 2) int64; offsets: (documents + 1,) int64: those of document i are
    ranges[offsets[i] : offsets[i + 1]].
    """

    ranges: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, lists: list[list[Span]]) -> Spans:
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        ranges = np.array([span for spans in lists for span in spans], np.int64)
        return cls(ranges.reshape(-1, 2), offsets)

    def lists(self) -> list[list[Span]]:
        spans = [(start, stop) for start, stop in self.ranges.tolist()]
        edges = self.offsets.tolist()
        return [spans[a:b] for a, b in pairwise(edges)]

    def take(self, rows: np.ndarray) -> Spans:
        """The spans of some of the documents."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Spans(self.ranges[places], offsets)
