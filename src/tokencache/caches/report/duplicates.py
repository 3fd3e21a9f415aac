"""Documents of the same ids: found by a few tokens of each, then compared whole."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...tokens.read import Documents

SAMPLED = 4  # tokens of each document, a power of two
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits in no order


@dataclass(frozen=True)
class Duplicates:
    """same: (k,) the numbers of documents that are equal to an earlier one, and first_of: (k,)
    those of the earliest, over all sets of token shards; empty documents are none."""

    sets: list[Documents]
    same: np.ndarray
    first_of: np.ndarray
    documents: int

    def figures(self, places: dict[str, np.ndarray]) -> dict[str, int]:
        """places: the documents of each split.

        `documents` are those beyond the first of each kind; `most` are of one kind, with it.
        """
        copies = np.unique(self.first_of, return_counts=True)[1]
        return {
            "documents": len(self.same),
            "most": int(copies.max()) + 1 if len(copies) else 0,
            "validation_in_train": self._leaked(places),
        }

    def first(self) -> dict[str, tuple[Documents, int]]:
        """The document with the most copies."""
        if not len(self.same):
            return {}
        numbers, copies = np.unique(self.first_of, return_counts=True)
        number = int(numbers[np.argmax(copies)])
        for documents in self.sets:
            if number < len(documents):
                return {"duplicate": (documents, number)}
            number -= len(documents)
        return {}

    def _leaked(self, places: dict[str, np.ndarray]) -> int:
        """How many documents of the validation are in train as well."""
        if "validation" not in places or not len(self.same):
            return 0
        group = np.arange(self.documents)
        group[self.same] = self.first_of
        trained = np.zeros(self.documents, bool)
        trained[group[places["train"]]] = True
        return int(trained[group[np.unique(places["validation"])]].sum())


def find(sides: Sequence[list[Documents]]) -> Duplicates:
    """sides: sets of token shards; of pairs those of the sources and of the targets, whose
    documents are a pair by their numbers."""
    keys = sum(_mixed(_keys(sets), n) for n, sets in enumerate(sides))
    some = np.any([_lengths(sets) > 0 for sets in sides], axis=0)
    numbers = np.flatnonzero(some)
    # 32 bits of the key and 32 of the number: a sort of numbers is several times faster than
    # one that tells the order. What only seems equal is found out below.
    order = np.sort(keys[numbers] >> np.uint64(32) << np.uint64(32) | numbers.astype(np.uint64))
    short = order >> np.uint64(32)
    again = np.flatnonzero(short[1:] == short[:-1])
    likely = np.zeros(len(order), bool)
    likely[again] = likely[again + 1] = True
    same, first_of = [], []
    earliest: dict[bytes, int] = {}
    before = None
    candidates = (order[likely] & np.uint64(2**32 - 1)).astype(np.int64)
    contents = _Contents(sides)
    for number, key in zip(candidates.tolist(), short[likely].tolist(), strict=True):
        if key != before:
            earliest, before = {}, key
        first = earliest.setdefault(contents[number], number)
        if first != number:
            same.append(number)
            first_of.append(first)
    count = len(some)
    return Duplicates(sides[0], np.array(same, np.int64), np.array(first_of, np.int64), count)


def _mixed(keys: np.ndarray, side: int) -> np.ndarray:
    return keys * (MIX + np.uint64(2 * side))


def _lengths(sets: list[Documents]) -> np.ndarray:
    return np.concatenate([documents.length for documents in sets])


def _keys(sets: list[Documents]) -> np.ndarray:
    """(n,) uint64: the same for equal documents, another for nearly all others."""
    found = [np.zeros(0, np.uint64)]
    for documents in sets:
        for number in range(len(documents.segments)):
            segment = documents.segments[number]
            begin, length = segment.offsets[:-1], np.diff(segment.offsets)
            key = length.astype(np.uint64)
            if not len(segment.ids):
                found.append(key)
                continue
            for part in range(SAMPLED):
                at = begin + (length * (2 * part + 1)) // (2 * SAMPLED)
                # That of an empty last document is one behind the end.
                token = segment.ids.take(at, mode="clip").astype(np.uint64)
                key = (key ^ token) * MIX
                key ^= key >> np.uint64(29)
            key[length == 0] = 0
            found.append(key)
    return np.concatenate(found)


class _Contents:
    """The ids of single documents as bytes, of pairs those of both sides."""

    def __init__(self, sides: Sequence[list[Documents]]) -> None:
        self._sides = []
        for sets in sides:
            segments = [d.segments[n] for d in sets for n in range(len(d.segments))]
            self._sides.append((segments, np.cumsum([0, *map(len, segments)]).tolist()))

    def __getitem__(self, number: int) -> bytes:
        return b"".join(self._parts(number))

    def _parts(self, number: int) -> Iterator[bytes]:
        for segments, first in self._sides:
            which = bisect_right(first, number) - 1
            segment, place = segments[which], number - first[which]
            ids = segment.ids[segment.offsets[place] : segment.offsets[place + 1]]
            yield len(ids).to_bytes(8, "little")
            yield ids.tobytes()
