"""The lengths of whole documents: their spread, and what each max_length would lose of them."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
SHORTEST = 32  # of the lengths that are tried
FAR = 4  # times the longest document


def figures(lengths: np.ndarray, max_length: int) -> dict[str, Any]:
    """(n,) int64 tokens of each document, 0 of an empty one; empty ones count as such alone."""
    values, counts = np.unique(lengths, return_counts=True)
    empty = int(counts[0]) if len(values) and values[0] == 0 else 0
    if empty:
        values, counts = values[1:], counts[1:]
    documents, tokens = int(counts.sum()), int((values * counts).sum())
    return {
        "documents": documents,
        "empty": empty,
        "tokens": tokens,
        "length": _spread(values, counts),
        "histogram": _histogram(values, counts, max_length),
        "truncation": [_truncated(values, counts, length) for length in _tried(values, max_length)],
    }


def _spread(values: np.ndarray, counts: np.ndarray) -> dict[str, Any] | None:
    if not len(values):
        return None
    upto = np.cumsum(counts)
    mean = round(float((values * counts).sum() / upto[-1]), 1)
    found = {"shortest": int(values[0]), "mean": mean, "longest": int(values[-1])}
    for name, share in QUANTILES.items():
        found[name] = int(values[np.searchsorted(upto, share * upto[-1])])
    return found


def _histogram(values: np.ndarray, counts: np.ndarray, max_length: int) -> list[list[int]]:
    """[from, to, documents] of each bar: two bars each time that the length doubles, and one
    that ends at max_length in the place of the nearest, if it is not far behind the longest."""
    if not len(values):
        return []
    longest = int(values[-1])
    near = max_length <= FAR * longest
    last = max(longest, max_length if near else 0)
    ends = {round(2 ** (n / 2)) for n in range(2, 2 * last.bit_length() + 1)}
    if near:
        nearest = min(ends, key=lambda end: (abs(np.log(end / max_length)), end))
        ends = ends - {nearest} | {max_length}
    edges = np.array([0, *sorted(ends)])
    upto = np.concatenate([[0], np.cumsum(counts)])
    found = np.diff(upto[np.searchsorted(values, edges, "right")]).tolist()
    bars = [[int(a) + 1, int(b), n] for a, b, n in zip(edges[:-1], edges[1:], found, strict=True)]
    some = [n for n, (_, end, documents) in enumerate(bars) if documents or end == max_length]
    return bars[some[0] : some[-1] + 1]


def _tried(values: np.ndarray, max_length: int) -> list[int]:
    """Powers of two up to the first that loses nothing, and max_length."""
    found, length = {max_length}, SHORTEST
    while len(values) and length // 2 < values[-1]:
        found.add(length)
        length *= 2
    return sorted(found)


def _truncated(values: np.ndarray, counts: np.ndarray, length: int) -> dict[str, int]:
    long = values > length
    return {
        "max_length": length,
        "documents": int(counts[long].sum()),
        "tokens": int(((values[long] - length) * counts[long]).sum()),
    }
