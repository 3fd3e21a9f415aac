"""The tokens of rows, copied out of the token shards, with their labels and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..tokens.read import Documents, Segments
from .best_fit import stable_order
from .windows import Cut, Rows, Windows, ranges

IGNORED = -100  # the label that torch's cross entropy leaves out

# A list column: (rows + 1,) offsets, and the values of all rows.
Column = tuple[np.ndarray, np.ndarray]


class Gatherer:
    """Copies windows out of the segments they lie in.

    masked: whether only some tokens of documents are trained on; cut: how documents of the
    cache were truncated, None where none was.
    """

    def __init__(self, segments: Segments, masked: bool, cut: Cut | None = None) -> None:
        self.segments, self.masked, self.cut = segments, masked, cut

    @property
    def ignores(self) -> bool:
        """Whether labels of unpacked rows can be -100, which takes an int32."""
        return self.masked or (self.cut is not None and any(self.cut.untrained))

    def columns(self, found: Rows) -> dict[str, Column]:
        """The columns of some rows as a cache has them; input_ids of the shards' own type, and
        so labels where they are the same."""
        lengths = found.windows.length
        ends = np.cumsum(lengths)
        offsets = np.concatenate([[0], ends])[found.first]
        ids = labels = self(found.windows)
        if self.ignores or found.packed:
            labels = self._labels(found, ids, ends - lengths)
        made = {"input_ids": (offsets, ids), "labels": (offsets, labels)}
        if found.packed:
            made["position_ids"] = (offsets, _positions(lengths, ends))
            made["seq_lengths"] = (found.first, lengths.astype(np.int32))
        return made

    def _labels(self, found: Rows, ids: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """(tokens,) int32: the ids that are trained on. Packed, a window's first one is none:
        it would be predicted from the token before it, which is of another window."""
        labels = ids.astype(np.int32)
        spans = self.spans(found.windows)
        if spans is not None:
            window, begin, end = spans
            steps = np.zeros(len(ids) + 1, np.int32)  # +1 and -1 around what is trained on
            np.add.at(steps, begins[window] + begin, 1)
            np.add.at(steps, begins[window] + end, -1)
            labels[np.cumsum(steps[:-1], dtype=np.int32) == 0] = IGNORED
        else:
            first, last = self._trained_part(self.is_cut(found.windows), found.windows.length)
            labels[ranges(begins, first)] = IGNORED
            labels[ranges(begins + last, found.windows.length - last)] = IGNORED
        if found.packed:
            labels[begins] = IGNORED
        return labels

    def is_cut(self, found: Windows) -> np.ndarray:
        """(windows,) bool: which hold a document that was truncated."""
        if self.cut is None:
            return np.zeros(len(found), bool)
        return self._place(found)[2] > found.length

    def _place(self, found: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each window, (n,) int64: the segment, where its document begins there, and how long
        that is."""
        number = self.segments.of(found.document)
        begin, length = np.empty_like(number), np.empty_like(number)
        for segment, mine, document in self._by_segment(found, number):
            begin[mine] = segment.offsets[document]
            length[mine] = segment.offsets[document + 1] - begin[mine]
        return number, begin, length

    def __call__(self, found: Windows) -> np.ndarray:
        """(tokens,) ids of the windows one after the other."""
        number, begin, length = self._place(found)
        ends = np.cumsum(found.length)
        targets = ends - found.length
        tail = np.where(length > found.length, self.cut.tail if self.cut else 0, 0)
        parts = [(number, begin + found.start, found.length - tail, targets)]
        if tail.any():
            some = tail > 0
            part = (number, begin + length - tail, tail, ends - tail)
            parts.append(tuple(values[some] for values in part))
        size = int(ends[-1]) if len(ends) else 0
        some = self.segments[int(number[0])].ids.dtype if len(number) else np.uint16
        ids = np.empty(size, some)
        for part in parts:
            self._copy(ids, *part)
        return ids

    def _copy(
        self, ids: np.ndarray, number: np.ndarray, source: np.ndarray, count: np.ndarray,
        target: np.ndarray,
    ) -> None:  # fmt: skip
        """Copy `count` ids from `source` in segment `number` to `target`, for each of them.

        A loop over stretches: what follows each other on both sides is one, and copying
        one takes less time than to find an index for each of some 40 tokens.
        """
        if not len(count):
            return
        goes_on = (number[1:] == number[:-1]) & (source[1:] == source[:-1] + count[:-1])
        goes_on &= target[1:] == target[:-1] + count[:-1]
        first = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        sizes = np.add.reduceat(count, first)
        views = {n: memoryview(self.segments[n].ids) for n in np.unique(number).tolist()}
        out = memoryview(ids)
        stretches = (number[first], source[first], sizes, target[first])
        for which, at, size, to in zip(*(s.tolist() for s in stretches), strict=True):
            out[to : to + size] = views[which][at : at + size]

    def spans(self, found: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What is trained on: windows, and in each the places from … to, (k,) int64 each.

        None where it is all tokens.
        """
        if not self.masked:
            return None
        pieces = [(np.zeros(0, np.int64), np.zeros((0, 2), np.int64), np.zeros(0, np.int64))]
        for segment, mine, document in self._by_segment(found, self.segments.of(found.document)):
            first = segment.spans_of[document]
            count = segment.spans_of[document + 1] - first
            spans = segment.spans[ranges(first, count)].astype(np.int64)
            length = segment.offsets[document + 1] - segment.offsets[document]
            pieces.append((np.repeat(mine, count), spans, np.repeat(length, count)))
        window, spans, length = (np.concatenate(p) for p in zip(*pieces, strict=True))
        start, size, tail = found.start[window], found.length[window], np.zeros_like(window)
        cut = (length > size) & (self.cut is not None)
        tail[cut] = self.cut.tail if self.cut else 0
        first, last = self._trained_part(cut, size)
        # Where in the document the kept tokens lie, and where in the window they come to.
        kept = []
        for source, count, target in ((start, size - tail, 0), (length - tail, tail, size - tail)):
            begin = np.maximum(spans[:, 0] - source, 0) + target
            end = np.minimum(spans[:, 1] - source, count) + target
            begin, end = np.maximum(begin, first), np.minimum(end, last)
            some = begin < end
            kept.append((window[some], begin[some], end[some]))
        return tuple(np.concatenate(k) for k in zip(*kept, strict=True))

    def _trained_part(self, cut: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From where to where in each window there can be tokens that are trained on.

        cut: (windows,) bool, which hold a truncated document; size: (windows,) their tokens.
        """
        first, last = self.cut.untrained if self.cut else (0, 0)
        return np.where(cut, first, 0), size - np.where(cut, last, 0)

    def trained(self, found: Windows) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens of each window are trained on, and how many but for its first one,
        which no token predicts: (windows,) int64 each."""
        spans = self.spans(found)
        if spans is None:
            begin, end = self._trained_part(self.is_cut(found), found.length)
            return end - begin, end - np.maximum(begin, 1)
        window, begin, end = spans
        sizes = (end - begin, end - np.maximum(begin, 1))
        all_of, but_first = (np.bincount(window, size, minlength=len(found)) for size in sizes)
        return all_of.astype(np.int64), but_first.astype(np.int64)

    def _by_segment(self, found: Windows, number: np.ndarray) -> list[tuple]:
        """(segment, its windows, the numbers of their documents in it) of each segment."""
        order = stable_order(number)
        edges = np.flatnonzero(np.diff(number[order])) + 1
        made = []
        for mine in np.split(order, edges) if len(order) else []:
            one = int(number[mine[0]])
            made.append((self.segments[one], mine, found.document[mine] - self.segments.first[one]))
        return made


def _positions(lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(tokens,) int32: 0, 1, … in each window, none of which is empty."""
    steps = np.ones(ends[-1] if len(ends) else 0, np.int32)
    steps[:1] = 0
    steps[ends[:-1]] = 1 - lengths[:-1]
    return np.cumsum(steps, dtype=np.int32, out=steps)


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split of a cache, and what they are gathered with."""

    rows: Rows
    gather: Gatherer
    documents: Documents

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def types(self) -> dict[str, np.dtype]:
        """The columns with the types of their values: labels are as wide as the ids where no
        -100 is among them."""
        ids, whole = self.documents.dtype, np.dtype(np.int32)
        if self.rows.packed:
            names = ("labels", "position_ids", "seq_lengths")
            return {"input_ids": ids} | dict.fromkeys(names, whole)
        return {"input_ids": ids, "labels": whole if self.gather.ignores else ids}

    def columns(self, start: int, stop: int) -> dict[str, Column]:
        """The columns of rows start … stop as a cache has them."""
        return self.gather.columns(self.rows[start:stop])

    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens of each row."""
        return self.rows.sums(self.rows.windows.length)

    def cut(self) -> np.ndarray:
        """(rows,) bool: which hold a document that was truncated."""
        found = self.rows.windows
        if self.gather.cut is None:
            return np.zeros(len(self), bool)
        return self.rows.sums(self.documents.length[found.document] > found.length) > 0

    def counted(self, max_length: int) -> dict[str, Any]:
        """What cache.json says of it."""
        tokens = int(self.lengths().sum())
        trained, targets = map(self.rows.sums, self.gather.trained(self.rows.windows))
        if self.rows.packed:
            trained = targets
        cut, nothing = self.cut(), trained == 0
        return {
            "rows": len(self),
            "windows": len(self.rows.windows),
            "tokens": tokens,
            "tokens_trained": int(trained.sum()),
            "rows_without_trained_tokens": int(nothing.sum()),
            "rows_cut": int(cut.sum()),
            "rows_cut_without_trained_tokens": int((cut & nothing).sum()),
            "targets": int(targets.sum()),
            "rows_without_targets": np.flatnonzero(targets == 0).tolist(),
            "filled": round(tokens / max(1, len(self) * max_length), 6),
        }
