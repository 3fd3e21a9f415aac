"""All tokens end to end in one file, and where documents end in another one.

numpy, as OLMo and Dolma have it: NAME.npy is bare uint16 or uint32 (in spite of its name it
has no header), NAME.csv.gz the first token and the end of each document, a line each, and
label_mask/NAME.npy a byte for each token: 1 where it is trained on.

nanotron, as datatrove has it: NAME/NAME.ds is the same, NAME/NAME.ds.index the ends of the
documents in tokens (uint64).
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...base.arrays import as_arrow
from ...base.arrow_io import HashedFile
from ..lib.blocks import Block
from . import Split

LITTLE = {np.dtype(np.uint16): "<u2", np.dtype(np.int32): "<u4"}


class _Flat:
    """The ids; `write` leaves the ends of the block's documents in `ends`."""

    def __init__(self, split: Split, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files = {path: HashedFile(path)}
        self._ids, self._kind, self._end = self.files[path], LITTLE[split.dtype], 0

    def write(self, block: Block) -> np.ndarray:
        """Returns (documents + 1,) int64: the first token of the block's first document, and
        the end of each."""
        self._ids.write(_bytes(block.ids.astype(self._kind, copy=False)))
        ends = self._end + np.concatenate([[0], np.cumsum(block.documents())])
        self._end = int(ends[-1])
        return ends

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def checksums(self) -> dict[Path, str]:
        return {path: file.hasher.hexdigest() for path, file in self.files.items()}


class Numpy(_Flat):
    def __init__(self, split: Split, out: Path) -> None:
        super().__init__(split, out / f"{split.name}.npy")
        places, masks = out / f"{split.name}.csv.gz", out / "label_mask" / f"{split.name}.npy"
        self.files[places] = HashedFile(places)
        # Without a name and a time in it, so that the same documents give the same bytes.
        self._places = gzip.GzipFile("", "wb", 6, self.files[places], mtime=0)
        self._mask = None
        if split.masked:
            masks.parent.mkdir(exist_ok=True)
            self._mask = self.files[masks] = HashedFile(masks)

    def write(self, block: Block) -> None:
        from pyarrow import csv

        ends = super().write(block)
        table = pa.table({"start": as_arrow(ends[:-1]), "end": as_arrow(ends[1:])})
        sink = pa.BufferOutputStream()
        csv.write_csv(table, sink, csv.WriteOptions(include_header=False))
        self._places.write(sink.getvalue())
        if self._mask:
            self._mask.write(_bytes(block.trained))

    def close(self) -> None:
        self._places.close()
        super().close()


class Nanotron(_Flat):
    def __init__(self, split: Split, out: Path) -> None:
        path = out / split.name / f"{split.name}.ds"
        super().__init__(split, path)
        self._about = path.with_name(f"{path.name}.metadata")
        self._size, self._tokenizer = split.dtype.itemsize, split.tokenizer
        index = path.with_name(f"{path.name}.index")
        self._index = self.files[index] = HashedFile(index)

    def write(self, block: Block) -> None:
        self._index.write(_bytes(super().write(block)[1:].astype("<u8")))

    def close(self) -> None:
        self.files[self._about] = HashedFile(self._about)
        self.files[self._about].write(
            f"{self._tokenizer}|{self._size}\n{self._end}\n{self._end / 1e6:.3g} MT".encode()
        )
        super().close()


def _bytes(values: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(values)).cast("B")
