"""Hashes of what rows hold: 64 bits each, to draw some of the rows by.

A row has the same hash wherever it stands, whichever tokenizer and chat template it is for, and on
every machine.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from ..base.arrays import buffers


def mixed(values: np.ndarray) -> np.ndarray:
    """(n,) uint64 to others, as splitmix64 does it: one to one, and each bit changes all."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def of_columns(columns: list[pa.LargeStringArray]) -> np.ndarray:
    """(rows,) uint64 of rows with these columns of text, without nulls."""
    found = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        found = mixed(found) + of_texts(column)
    return found


def of_texts(texts: pa.LargeStringArray) -> np.ndarray:
    """(texts,) uint64. A loop over texts: 0.3 µs each, and no more per byte than to read it."""
    offsets, data = buffers(texts)
    view = memoryview(data)
    found = (xxh3_64_intdigest(view[begin:end]) for begin, end in pairwise(offsets.tolist()))
    return np.fromiter(found, np.uint64, len(texts))
