"""The columns of JSON Lines: all rows are looked at, and few are parsed.

Keys are found by their quotes and braces, for many rows at once. A row is parsed only where
a key is seen that no row before it has. For valid JSON Lines that is exact; a row that is
not valid may hide a key, but such a file can't be read later either.
"""

from __future__ import annotations

import numpy as np

from .json_rows import parsed
from .source import HEAD_BYTES, LONGEST_ROW, Piece, Source, checked, line_count, places, too_long

LONGEST_KEY = 512  # bytes: where there are longer ones, rows are parsed
MOST_SIGNS = 32  # of backslashes, or of space before a colon, that are counted one by one
PAD = bytes(LONGEST_KEY)
SPACES = np.isin(np.arange(256), list(b" \t\r"))
# Words of eight bytes: each byte is a quote, or has its lower bits set.
QUOTES, LOWER = np.uint64(0x2222222222222222), np.uint64(0x7F7F7F7F7F7F7F7F)
LAST = np.array([2**64 - 2 ** (64 - 8 * n) for n in range(9)], "<u8")  # n bytes of a word
MIX = np.uint64(0x9E3779B97F4A7C15)


class Columns:
    """Collects the keys of a file's rows in the order in which they first come."""

    def __init__(self, source: Source) -> None:
        self._whole = Piece(source, 0, 0)
        self._names: dict[str, None] = {}
        self._known = np.zeros(0, np.uint64)  # hashes of keys as they are written
        self._held: list[bytes] = []  # of a line that has not ended
        self._lines = self._bytes = 0  # before that line

    def feed(self, block: bytes) -> None:
        """The next bytes of the file. Raises UserError where a row that is looked at closely
        is broken, and for one that is too long."""
        end = block.rfind(b"\n") + 1
        if end:
            self._look(b"".join((PAD, *self._held, memoryview(block)[:end])))
            self._held, block = [], block[end:]
        self._held.append(block)
        if sum(map(len, self._held)) > LONGEST_ROW:
            raise too_long(self._whole, self._lines)

    def found(self) -> list[str]:
        """All columns, when the file has come to its end."""
        self._look(b"".join((PAD, *self._held)))
        self._held = []
        return list(self._names)

    def _look(self, padded: bytes) -> None:
        """Whole lines, behind PAD."""
        if self._bytes < HEAD_BYTES:  # what is wrong with a file shows at its start, mostly
            chunk = padded[len(PAD) :]
            end = chunk.find(b"\n", HEAD_BYTES - self._bytes) + 1 or len(chunk)
            self._parse(chunk[:end])
            self._passed(chunk[:end])
            padded = PAD + chunk[end:]
        if len(padded) > len(PAD):
            if not self._scan(padded):
                self._parse(padded[len(PAD) :])
            self._passed(padded)

    def _passed(self, chunk: bytes) -> None:
        self._lines += line_count(chunk)
        self._bytes += len(chunk)

    def _parse(self, chunk: bytes, before: int = 0) -> None:
        """Take the keys of lines, which have `before` lines before them in what is looked at."""
        before += self._lines
        for _, row in parsed(self._whole, before, checked(self._whole, before, chunk)):
            self._names.update(dict.fromkeys(row))

    def _scan(self, chunk: bytes) -> bool:
        """Look for new keys; False where the rows have to be parsed."""
        data = np.frombuffer(chunk, np.uint8)
        found = _keys(chunk, data)
        if found is None:
            return False
        starts, hashes = found
        unknown = ~np.isin(hashes, self._known)
        if not unknown.any():
            return True
        starts, hashes = starts[unknown], hashes[unknown]
        chosen = _of_rows(data, starts)
        if chosen is None:
            return False
        self._take(chunk, starts[chosen], hashes[chosen])
        return True

    def _take(self, chunk: bytes, starts: np.ndarray, hashes: np.ndarray) -> None:
        """Parse the first row of each key."""
        new, first = np.unique(hashes, return_index=True)
        line = end = before = 0
        for start in np.sort(starts[first]).tolist():
            if start < end:
                continue
            passed, line = line, max(len(PAD), chunk.rfind(b"\n", 0, start) + 1)
            end = chunk.find(b"\n", start) + 1 or len(chunk)
            before += chunk.count(b"\n", passed, line)
            self._parse(chunk[line:end], before)
        self._known = np.concatenate([self._known, new])


def _keys(chunk: bytes, data: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where all keys start, at any depth, and a number for each; None where one is too odd.

    A key is what stands before a quote and a colon. So does what stands before a text that
    starts with a colon, which makes a key more and hides none.
    """
    ends = places(data, b":") - 1
    steps = 0
    while len(spaced := np.flatnonzero(SPACES[data[ends]])):
        ends[spaced] -= 1
        steps += 1
        if steps > MOST_SIGNS:
            return None
    ends = ends[data[ends] == ord('"')]
    ends = ends[~_escaped(data, ends)]
    found = _strings_before(chunk, ends)
    if found is None or (data[found[0] - 2] == ord("\\")).any():  # an escaped quote in a key
        return None
    return found


def _escaped(data: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """Before which quotes there is an odd number of backslashes."""
    escaped = np.zeros(len(quotes), bool)
    left = np.flatnonzero(data[quotes - 1] == ord("\\"))
    before = 2
    while len(left):
        escaped[left] ^= True
        left = left[data[quotes[left] - before] == ord("\\")]
        before += 1
        if before > MOST_SIGNS:
            return _escaped_by_runs(data, quotes)
    return escaped


def _escaped_by_runs(data: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """The same where there are many backslashes."""
    backslashes = places(data, b"\\")
    numbers = np.arange(len(backslashes))
    begins = np.maximum.accumulate(np.where(np.diff(backslashes, prepend=-2) != 1, numbers, 0))
    escaped = data[quotes - 1] == ord("\\")
    last = np.searchsorted(backslashes, quotes[escaped] - 1)
    escaped[escaped] = (last - begins[last]) % 2 == 0
    return escaped


def _strings_before(chunk: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where what stands between a quote and the one before it starts, and a number for it:
    two have the same with a chance of 2**-64. None where one is too long."""
    words = np.ndarray(len(chunk) - 7, "<u8", chunk, strides=(1,))
    starts, hashes = ends.copy(), np.zeros(len(ends), np.uint64)
    left = np.arange(len(ends))
    for passed in range(8, LONGEST_KEY + 8, 8):
        word = words[ends[left] - passed]
        unlike = word ^ QUOTES
        quotes = ~(((unlike & LOWER) + LOWER) | unlike | LOWER)  # has a bit for each
        _, bits = np.frexp(quotes.astype(np.float64))
        behind = 7 - ((bits - 1) >> 3)  # bytes behind the last quote; 8 where there is none
        starts[left] -= behind
        hashes[left] = _mixed(hashes[left] ^ (word & LAST[behind]))
        left = left[behind == 8]
        if not len(left):
            return starts, _mixed(hashes ^ (ends - starts).astype(np.uint64))
    return None


def _mixed(numbers: np.ndarray) -> np.ndarray:
    numbers = numbers * MIX
    return numbers ^ (numbers >> np.uint64(32))


def _of_rows(data: np.ndarray, starts: np.ndarray) -> np.ndarray | None:
    """Which strings begin here, in a row's own object and not in an object or list within;
    None where quotes or braces are not those of whole rows."""
    quotes = places(data, b'"')
    quotes = quotes[~_escaped(data, quotes)]
    braces = places(data, b"{[}]")
    braces = braces[np.searchsorted(quotes, braces) % 2 == 0]
    depths = np.cumsum(np.where(np.isin(data[braces], list(b"{[")), 1, -1))
    if len(quotes) % 2 or not len(depths) or depths[-1] or depths.min() < 0:
        return None
    begins = np.searchsorted(quotes, starts - 1) % 2 == 0
    return begins & (depths[np.searchsorted(braces, starts) - 1] == 1)
