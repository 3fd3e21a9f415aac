"""Best-fit decreasing bin packing, in bulk over equal lengths."""

from __future__ import annotations

import numpy as np


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Assign items to bins of `capacity`: longest first, each into the fullest bin it fits.

    lengths: (n,) integers in 1..capacity. Returns (n,) bin numbers from 0, numbered
    by the first item (in input order) that each bin holds.

    The result is exactly that of placing one item after the other (Johnson,
    "Near-optimal bin packing algorithms", 1973), found without a loop over items:
    equal items fill a bin as often as they fit before the next bin is touched,
    since a bin just used is the fullest that still has room.
    """
    bins = np.empty(len(lengths), np.int64)
    if not len(lengths):
        return bins
    spare = capacity - lengths.astype(np.int64)
    counts = np.bincount(spare)
    distinct = np.flatnonzero(counts)
    groups = np.split(stable_order(spare), np.cumsum(counts[distinct])[:-1])
    room = _Room(capacity)
    for less, items in zip(distinct, groups, strict=True):
        _place(items, capacity - int(less), room, bins)
    return _renumber(bins, room.opened)


def stable_order(values: np.ndarray) -> np.ndarray:
    """np.argsort(values, kind="stable"), for up to 2**32 int64 in 0..2**31 - 1.

    A sort of numbers that hold value and place is several times faster.
    """
    return np.sort(values << 32 | np.arange(len(values))) & (2**32 - 1)


class _Room:
    """Bins by the room that is left in them; bit r of `mask` is set where there are any."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.mask = 0
        self.opened = 0
        self._bins: dict[int, list[np.ndarray]] = {}

    def add(self, room: int, bins: np.ndarray) -> None:
        if room and len(bins):
            self.mask |= 1 << room
            self._bins.setdefault(room, []).append(bins)

    def take(self, least: int, items: int) -> tuple[int, np.ndarray]:
        """The tightest room of at least `least` and all bins that have it, or new bins."""
        fitting = self.mask >> least
        if not fitting:
            count = -(-items // (self.capacity // least))
            self.opened += count
            return self.capacity, np.arange(self.opened - count, self.opened)
        room = least + (fitting & -fitting).bit_length() - 1
        self.mask &= ~(1 << room)
        return room, np.concatenate(self._bins.pop(room))


def _place(items: np.ndarray, length: int, room: _Room, bins: np.ndarray) -> None:
    while len(items):
        left, found = room.take(length, len(items))
        each = left // length
        used = found[: -(-len(items) // each)]
        room.add(left, found[len(used) :])
        placed = min(len(items), len(used) * each)
        bins[items[:placed]] = np.repeat(used, each)[:placed]
        in_last = placed - (len(used) - 1) * each
        room.add(left - each * length, used[:-1])
        room.add(left - in_last * length, used[-1:])
        items = items[placed:]


def _renumber(bins: np.ndarray, count: int) -> np.ndarray:
    """Number bins by their first item."""
    first = np.empty(count, np.int64)
    first[bins[::-1]] = np.arange(len(bins))[::-1]  # the last one written stays
    opens = np.zeros(len(bins), np.int64)
    opens[first] = 1
    return (np.cumsum(opens) - 1)[first][bins]
