"""The tokens of rows, copied out of the token shards, with their labels and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .packing import stable_order
from .token_shards import Documents, Segments
from .windows import Rows, Windows, ranges

IGNORED = -100  # the label that torch's cross entropy leaves out

# A list column: (rows + 1,) offsets, and the values of all rows.
Column = tuple[np.ndarray, np.ndarray]


class Gatherer:
    """Copies windows out of the segments they lie in.

    prefix, suffix: how many special tokens a document begins and ends with; masked: whether
    only some tokens are trained on.
    """

    def __init__(self, segments: Segments, prefix: int, suffix: int, masked: bool) -> None:
        self.segments, self.masked = segments, masked
        self.prefix, self.suffix = prefix, suffix

    @property
    def specials(self) -> int:
        return self.prefix + self.suffix

    def columns(self, found: Rows) -> dict[str, Column]:
        """The columns of some rows as a cache has them; input_ids of the shards' own type, and
        so labels where they are the same."""
        ids, spans = self(found.windows), self.spans(found.windows)
        lengths = found.windows.content + self.specials
        ends = np.cumsum(lengths)
        offsets = np.concatenate([[0], ends])[found.first]
        labels = ids
        if spans is not None or found.packed:
            labels = _labels(ids, ends - lengths, spans, found.packed)
        made = {"input_ids": (offsets, ids), "labels": (offsets, labels)}
        if found.packed:
            made["position_ids"] = (offsets, _positions(lengths, ends))
            made["seq_lengths"] = (found.first, lengths.astype(np.int32))
        return made

    def __call__(self, found: Windows) -> np.ndarray:
        """(tokens,) ids of the windows one after the other."""
        prefix, suffix = self.prefix, self.suffix
        number = self.segments.of(found.document)
        begin, length = np.empty_like(number), np.empty_like(number)
        for segment, mine, document in self._by_segment(found, number):
            begin[mine] = segment.offsets[document]
            length[mine] = segment.offsets[document + 1] - begin[mine]
        ends = np.cumsum(found.content + self.specials)
        targets = ends - found.content - self.specials
        # Most windows are a stretch of their document with a special token or none cut off.
        later = found.start > 0
        whole = found.start + found.content + self.specials == length
        source = begin + np.where(later, prefix + found.start, 0)
        count = found.content + np.where(later, 0, prefix) + np.where(whole, suffix, 0)
        parts = [(number, source, count, targets + np.where(later, prefix, 0))]
        if prefix and later.any():
            one = np.full(later.sum(), prefix)
            parts.append((number[later], begin[later], one, targets[later]))
        if suffix and not whole.all():
            cut = ~whole
            one = np.full(cut.sum(), suffix)
            parts.append((number[cut], (begin + length)[cut] - suffix, one, ends[cut] - suffix))
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
        start, content = found.start[window], found.content[window]
        prefix, suffix = self.prefix, self.suffix
        # Where in the document the kept tokens lie, and where in the window they come to.
        stretches = [(prefix + start, content, prefix)]
        stretches += [(0, prefix, 0)] if prefix else []
        stretches += [(length - suffix, suffix, prefix + content)] if suffix else []
        kept = []
        for source, size, target in stretches:
            begin = np.maximum(spans[:, 0], source) - source
            end = np.minimum(spans[:, 1], source + size) - source
            some = begin < end
            kept.append((window[some], (begin + target)[some], (end + target)[some]))
        return tuple(np.concatenate(k) for k in zip(*kept, strict=True))

    def trained(self, found: Windows) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens of each window are trained on, and how many but for its first one,
        which no token predicts: (windows,) int64 each."""
        spans = self.spans(found)
        if spans is None:
            lengths = found.content + self.specials
            return lengths, lengths - 1
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
        """The columns with the types of their values: labels are as wide as the ids where all
        tokens are trained on, so that no -100 is among them."""
        ids, whole = self.documents.dtype, np.dtype(np.int32)
        if self.rows.packed:
            names = ("labels", "position_ids", "seq_lengths")
            return {"input_ids": ids} | dict.fromkeys(names, whole)
        return {"input_ids": ids, "labels": whole if self.gather.masked else ids}

    def columns(self, start: int, stop: int) -> dict[str, Column]:
        """The columns of rows start … stop as a cache has them."""
        return self.gather.columns(self.rows[start:stop])

    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens of each row."""
        return self.rows.sums(self.rows.windows.content + self.gather.specials)

    def counted(self, max_length: int) -> dict[str, Any]:
        """What cache.json says of it."""
        tokens = int(self.lengths().sum())
        trained, targets = map(self.rows.sums, self.gather.trained(self.rows.windows))
        if self.rows.packed:
            trained = targets
        return {
            "rows": len(self),
            "windows": len(self.rows.windows),
            "tokens": tokens,
            "tokens_trained": int(trained.sum()),
            "rows_without_trained_tokens": int((trained == 0).sum()),
            "targets": int(targets.sum()),
            "rows_without_targets": np.flatnonzero(targets == 0).tolist(),
            "filled": round(tokens / max(1, len(self) * max_length), 6),
        }


def _labels(ids: np.ndarray, begins: np.ndarray, spans: tuple | None, packed: bool) -> np.ndarray:
    """(tokens,) int32: the ids that are trained on. Packed, a document's first one is none:
    it would be predicted from the token before it, which is another document's."""
    labels = ids.astype(np.int32)
    if spans is not None:
        window, begin, end = spans
        steps = np.zeros(len(ids) + 1, np.int32)  # +1 and -1 around what is trained on
        np.add.at(steps, begins[window] + begin, 1)
        np.add.at(steps, begins[window] + end, -1)
        labels[np.cumsum(steps[:-1], dtype=np.int32) == 0] = IGNORED
    if packed:
        labels[begins] = IGNORED
    return labels
