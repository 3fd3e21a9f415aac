"""Which stretches of which documents make up the rows of a cache: arithmetic on lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..documents import row_hashes
from ..tokens.read import Documents
from .best_fit import best_fit_decreasing, stable_order


@dataclass(frozen=True)
class Windows:
    """What rows hold of documents: (n,) int64 each.

    document: its number; start: the number of the first token, special tokens counted; length:
    how many tokens. They stand together in the document, except where it was truncated, see
    `Cut`.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, chosen: np.ndarray | slice) -> Windows:
        return Windows(self.document[chosen], self.start[chosen], self.length[chosen])


@dataclass(frozen=True)
class Cut:
    """What a truncated document looks like: its ids are those that Hugging Face gives.

    tail: its window begins with the document's first tokens and ends with so many of its last
    ones; what lay between them is left out. untrained: how many of the window's first and last
    tokens are not trained on: special tokens at an end which is not the document's own, and where
    its beginning was cut off the token after them too, which would be predicted from them.
    """

    tail: int
    untrained: tuple[int, int]


def cut_of(
    cache: dict[str, Any], tokens: dict[str, Any], counts: dict[str, dict[str, int]]
) -> Cut | None:
    """How the documents of a cache were truncated; None where none was.

    cache, tokens: as `pack.build` takes them; counts: what `windows` counted in each split.
    """
    long = any(counted["documents_too_long"] for counted in counts.values())
    if cache["overflow"] != "truncate" or not long:
        return None
    prefix, suffix = tokens["prefix"], tokens["suffix"]
    if cache.get("truncation_side") == "left":
        return Cut(cache["max_length"] - prefix, (prefix + 1 if prefix else 0, 0))
    return Cut(suffix, (0, suffix))


@dataclass(frozen=True)
class Rows:
    """Rows of a split: windows in order, `first[i]:first[i + 1]` of them in row i."""

    windows: Windows
    first: np.ndarray
    packed: bool

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, part: slice) -> Rows:
        """Rows one after the other."""
        start, stop, _ = part.indices(len(self))
        first = self.first[start : stop + 1]
        return Rows(self.windows[first[0] : first[-1]], first - first[0], self.packed)

    def sums(self, of_windows: np.ndarray) -> np.ndarray:
        """(rows,) int64: in each row, the sum of an amount of its windows."""
        return sums(of_windows, self.first)


def sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(n,) int64 sums of values[first[i]:first[i + 1]], none of which is empty."""
    if len(first) < 2:
        return np.zeros(0, np.int64)
    return np.add.reduceat(values, first[:-1], dtype=np.int64)


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[i], first[i] + 1, … of which there are count[i], for all i one after the other."""
    before = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - before, count)


def windows(
    documents: Documents, max_length: int, overflow: str, prefix: int, suffix: int
) -> tuple[Windows, dict[str, int]]:
    """Cut documents to max_length by the overflow policy; also counts what that lost.

    prefix, suffix: how many special tokens a document begins and ends with. They count towards
    max_length. Documents with no other token are left out.
    """
    number = np.flatnonzero(documents.length > prefix + suffix)
    length = documents.length[number]
    long = length > max_length
    counts = {
        "documents": len(documents),
        "documents_empty": len(documents) - len(number),
        "documents_too_long": int(long.sum()),
        "tokens_lost": 0,
    }
    if overflow == "split":
        return _pieces(number, length, max_length, suffix), counts
    if overflow == "drop":
        counts["tokens_lost"] = int(length[long].sum())
        number, length = number[~long], length[~long]
    else:
        counts["tokens_lost"] = int((length[long] - max_length).sum())
    return Windows(number, np.zeros_like(number), np.minimum(length, max_length)), counts


def _pieces(number: np.ndarray, length: np.ndarray, max_length: int, suffix: int) -> Windows:
    """All tokens of documents, max_length at a time. Each piece has a token that is not a special
    one: if the last piece had only special tokens, it begins earlier."""
    count = -(-length // max_length)
    end = np.repeat(length, count)
    place = np.arange(len(end)) - np.repeat(np.cumsum(count) - count, count)
    start = np.minimum(place * max_length, end - suffix - 1)
    last = place == np.repeat(count, count) - 1
    stop = np.where(last, end, np.append(start[1:], 0))
    return Windows(np.repeat(number, count), start, stop - start)


def split_of(
    name: str, validation: Any, documents: Documents, found: Windows
) -> dict[str, slice | np.ndarray]:
    """Which windows of a set of token shards go into which split: all into the one of its
    name, or, where `validation` is {fraction, seed}, some into validation and the rest into
    train."""
    if not isinstance(validation, dict) or not validation["fraction"]:
        return {name: slice(None)}
    there = np.unique(found.document)
    kept = draw_validation(documents.hashes(), there, validation["fraction"], validation["seed"])
    mine = kept[found.document]
    return {"train": ~mine, "validation": mine}


def draw_validation(
    hashes: np.ndarray, there: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """(n,) bool: which of n documents are kept for validation, about that fraction of them.

    hashes: (n,) uint64 of the documents' rows; there: the numbers of those that have windows.

    Each document draws a number from the seed, its row and how many equal rows stand before it,
    and is kept if the number is small enough. So the same documents are kept for every model and
    max_length, and a document that is added, removed or changed moves no other. Where there are
    two documents or more, each side has one at least.
    """
    draws = row_hashes.mixed(hashes ^ row_hashes.mixed(np.array([seed % 2**64], np.uint64)))
    draws = row_hashes.mixed(draws + _equal_before(hashes))
    kept = draws < np.uint64(fraction * 2**64)
    if len(there) > 1 and not kept[there].any():
        kept[there[draws[there].argmin()]] = True
    elif len(there) and kept[there].all():
        kept[there[draws[there].argmax()]] = False
    return kept


def _equal_before(hashes: np.ndarray) -> np.ndarray:
    """(n,) uint64: how many equal ones stand before each."""
    before = np.zeros(len(hashes), np.uint64)
    ordered = np.sort(hashes)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(several):  # only few, most often: to find them is faster than to order all by number
        place = np.minimum(np.searchsorted(several, hashes), len(several) - 1)
        mine = np.flatnonzero(several[place] == hashes)
        mine = mine[np.argsort(hashes[mine], kind="stable")]
        first = np.flatnonzero(np.diff(hashes[mine], prepend=~hashes[mine[:1]]))
        count = np.diff(np.append(first, len(mine)))
        before[mine] = ranges(np.zeros_like(first), count)
    return before


def rows(found: Windows, max_length: int, packing: str) -> Rows:
    """One window a row, or several by best-fit decreasing, in the order of their documents."""
    if packing == "none" or not len(found):
        return Rows(found, np.arange(len(found) + 1), packing != "none")
    bins = best_fit_decreasing(found.length, max_length)
    first = np.concatenate([[0], np.cumsum(np.bincount(bins))])
    return Rows(found[stable_order(bins)], first, True)
