"""Megatron-Core's indexed data set: ids end to end in .bin, and where each sequence lies in .idx.

    NAME.idx    MMIDIDX and two zeros, version 1 (uint64), a code of the ids' type (uint8), the
                numbers of sequences and of document indices (uint64 each), then of the
                sequences the lengths (int32) and the first bytes (int64), and of the
                documents the numbers of their first sequences and the end (int64)

A document of the cache is a sequence and a document: Megatron puts them together itself.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ...base.arrow_io import HashedFile
from ...base.hashing import hash_file
from ..lib.blocks import Block
from . import Split

HEADER = b"MMIDIDX\x00\x00"
VERSION = 1
CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}


class Megatron:
    def __init__(self, split: Split, out: Path) -> None:
        self._bin, self._idx = out / f"{split.name}.bin", out / f"{split.name}.idx"
        self._ids = HashedFile(self._bin)
        self._dtype, count = split.dtype, split.documents
        head = HEADER + struct.pack("<QBQQ", VERSION, CODES[self._dtype], count, count + 1)
        sizes = [len(head), 4 * count, 8 * count, 8 * (count + 1)]
        # Written in its place, so that it takes no memory that others may want.
        self._index = np.memmap(self._idx, np.uint8, "w+", shape=(sum(sizes),))
        self._index[: len(head)] = np.frombuffer(head, np.uint8)
        starts = np.cumsum(sizes)
        kinds = ((count, "<i4"), (count, "<i8"), (count + 1, "<i8"))
        self._lengths, self._pointers, documents = (
            np.ndarray(shape, kind, self._index, start)
            for (shape, kind), start in zip(kinds, starts[:-1].tolist(), strict=True)
        )
        documents[:] = np.arange(count + 1)
        self._done = self._bytes = 0

    def write(self, block: Block) -> None:
        lengths = block.documents()
        self._ids.write(memoryview(block.ids).cast("B"))
        part = slice(self._done, self._done + len(lengths))
        ends = self._bytes + np.cumsum(lengths) * self._dtype.itemsize
        self._lengths[part] = lengths
        self._pointers[part] = ends - lengths * self._dtype.itemsize
        self._done, self._bytes = part.stop, int(ends[-1]) if len(ends) else self._bytes

    def close(self) -> None:
        self._ids.close()
        self._index.flush()

    def checksums(self) -> dict[Path, str]:
        return {self._bin: self._ids.hasher.hexdigest(), self._idx: hash_file(self._idx)}
