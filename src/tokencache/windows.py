"""Which stretches of which documents make up the rows of a cache: arithmetic on lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

from .packing import best_fit_decreasing, stable_order
from .token_shards import Documents


@dataclass(frozen=True)
class Windows:
    """Stretches of documents that fit into max_length: (n,) int64 each.

    document: its number; start: first content token kept, without the special
    tokens; content: how many. Special tokens are put around each window.
    """

    document: np.ndarray
    start: np.ndarray
    content: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, chosen: np.ndarray | slice) -> Windows:
        return Windows(self.document[chosen], self.start[chosen], self.content[chosen])


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
    documents: Documents, max_length: int, overflow: str, specials: int
) -> tuple[Windows, dict[str, int]]:
    """Cut documents to max_length by the overflow policy; also counts what that lost.

    Equal to Hugging Face's truncation: special tokens count towards max_length.
    Documents without any token are left out.
    """
    room = max_length - specials
    number = np.flatnonzero(documents.length > 0)
    content = documents.length[number] - specials
    long = content > room
    counts = {
        "documents": len(documents),
        "documents_empty": len(documents) - len(number),
        "documents_too_long": int(long.sum()),
        "tokens_lost": 0,
    }
    if overflow == "split":
        pieces = np.maximum(1, -(-content // room))
        first = np.repeat(np.cumsum(pieces) - pieces, pieces)
        start = (np.arange(pieces.sum()) - first) * room
        kept = np.minimum(room, np.repeat(content, pieces) - start)
        return Windows(np.repeat(number, pieces), start, kept), counts
    counts["tokens_lost"] = int((content[long] - room).sum())
    if overflow == "drop":
        counts["tokens_lost"] = int(content[long].sum() + specials * long.sum())
        number, content = number[~long], content[~long]
    return Windows(number, np.zeros_like(number), np.minimum(content, room)), counts


def split_of(
    name: str, validation: Any, documents: Documents, shard_keys: list[str], found: Windows
) -> dict[str, slice | np.ndarray]:
    """Which windows of a set of token shards go into which split: all into the one of its
    name, or, where `validation` is {fraction, seed}, some into validation and the rest into
    train."""
    if not isinstance(validation, dict) or not validation["fraction"]:
        return {name: slice(None)}
    fraction, seed = validation["fraction"], validation["seed"]
    kept = draw_validation(documents, shard_keys, fraction, seed)[found.document]
    return {"train": ~kept, "validation": kept}


def draw_validation(
    documents: Documents, shard_keys: list[str], fraction: float, seed: int
) -> np.ndarray:
    """(n,) bool: which documents are kept for validation, exactly that fraction of them.

    Each document draws a number from the seed, its source shard's key and its row
    there. So the same documents are kept for every model and max_length, and rows
    added elsewhere move hardly any. At least one document is kept on each side.
    """
    shards = zip(shard_keys, documents.counts, strict=True)
    draws = np.concatenate([np.zeros(0), *(_draws(seed, key, n) for key, n in shards)])
    kept = np.zeros(len(documents), bool)
    if fraction > 0 and len(documents) > 1:
        count = min(max(1, round(fraction * len(documents))), len(documents) - 1)
        last = np.partition(draws, count - 1)[count - 1]
        kept = draws < last
        kept[np.flatnonzero(draws == last)[: count - kept.sum()]] = True
    return kept


def _draws(seed: int, key: str, count: int) -> np.ndarray:
    """Numbers in [0, 1) of a shard's rows: the same for each row, however many follow it."""
    words = np.frombuffer(blake3(f"{seed} {key}".encode()).digest(), "<u8")[:2]
    return np.random.Generator(np.random.Philox(key=words)).random(count)


def rows(found: Windows, max_length: int, packing: str, specials: int) -> Rows:
    """One window a row, or several by best-fit decreasing, in the order of their documents."""
    if packing == "none" or not len(found):
        return Rows(found, np.arange(len(found) + 1), packing != "none")
    bins = best_fit_decreasing(found.content + specials, max_length)
    first = np.concatenate([[0], np.cumsum(np.bincount(bins))])
    return Rows(found[stable_order(bins)], first, True)
