"""Formats that have rows and columns: Parquet, and the data sets that axolotl and LLaMA-Factory
take as tokenized already."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np
from pyarrow.parquet import ParquetWriter

from ...base.arrow_io import HashedFile
from ...base.arrow_io import Writer as ArrowWriter
from ...caches.dataset import describe_split, describe_splits, record_batch, schema_of
from ...caches.rows import IGNORED, Column
from ..lib.blocks import Block
from . import Split

# Any id: it is padding, which nothing attends to and no loss is taken of.
PADDING = 0


class Parquet:
    """SPLIT.parquet with the columns of the cache."""

    def __init__(self, split: Split, out: Path) -> None:
        self._path = out / f"{split.name}.parquet"
        self._file = HashedFile(self._path)
        self._schema = schema_of(split.types)
        self._writer = ParquetWriter(self._file, self._schema, compression="zstd")

    def write(self, block: Block) -> None:
        self._writer.write_batch(record_batch(block.columns, self._schema))

    def close(self) -> None:
        self._writer.close()
        self._file.close()

    def checksums(self) -> dict[Path, str]:
        return {self._path: self._file.hasher.hexdigest()}


class _DataSet(ABC):
    """A split of a data set that `datasets.load_from_disk` opens."""

    types: ClassVar[dict[str, np.dtype]]

    def __init__(self, split: Split, out: Path) -> None:
        self.split, self._out = split, out
        self._path = out / split.name / "data-00000-of-00001.arrow"
        self._path.parent.mkdir()
        self._schema = schema_of(self.types)
        self._opened = ExitStack()
        made = ArrowWriter(self._path, self._schema, stream=True)
        self._writer = self._opened.enter_context(made)

    @abstractmethod
    def columns(self, block: Block) -> dict[str, Column]:
        """Those of `types`, of some rows."""

    def write(self, block: Block) -> None:
        made = self.columns(block).items()
        columns = {n: (places, v.astype(self.types[n], copy=False)) for n, (places, v) in made}
        self._writer.write(record_batch(columns, self._schema))

    def close(self) -> None:
        self._opened.close()
        describe_split(self._path.parent, [self._path.name], self._schema, self.split.key)
        splits = [folder.name for folder in self._out.iterdir() if folder.is_dir()]
        describe_splits(self._out, sorted(splits))

    def checksums(self) -> dict[Path, str]:
        return {self._path: self._writer.checksum()}


class Axolotl(_DataSet):
    """A row a document, for axolotl puts several into one itself. The first label of each is
    -100: there its token would be predicted from another document."""

    types: ClassVar = {
        "input_ids": np.dtype(np.int32),
        "attention_mask": np.dtype(np.int8),
        "labels": np.dtype(np.int32),
    }

    def columns(self, block: Block) -> dict[str, Column]:
        ends = np.concatenate([[0], np.cumsum(block.documents())])
        labels = block.columns["labels"][1].astype(np.int32)
        labels[ends[:-1]] = IGNORED
        return {
            "input_ids": (ends, block.ids),
            "attention_mask": (ends, np.ones(len(block.ids), np.int8)),
            "labels": (ends, labels),
        }


class LlamaFactory(_DataSet):
    """The rows of the cache. Packed ones are as its `neat_packing` makes them: padded to one
    more than max_length, with the number of its document at each token as attention_mask."""

    def __init__(self, split: Split, out: Path) -> None:
        names = ("input_ids", "attention_mask", "labels")
        names += ("position_ids",) if split.packed else ()
        self.types = dict.fromkeys(names, np.dtype(np.int32))  # type: ignore[misc]
        super().__init__(split, out)

    def columns(self, block: Block) -> dict[str, Column]:
        offsets = block.columns["input_ids"][0]
        if not self.split.packed:
            mask = np.ones(len(block.ids), np.int32)
            return {**block.columns, "attention_mask": (offsets, mask)}
        width = self.split.max_length + 1
        lengths, in_rows = np.diff(offsets), block.documents_in_rows()
        first = np.repeat(np.cumsum(in_rows) - in_rows, in_rows)
        number = np.arange(in_rows.sum()) - first + 1  # of the document in its row
        columns = {
            "input_ids": (PADDING, block.ids),
            "attention_mask": (0, np.repeat(number, block.documents())),
            "labels": (IGNORED, block.columns["labels"][1]),
            "position_ids": (0, block.columns["position_ids"][1]),
        }
        places = np.arange(len(block) + 1) * width
        kept = (np.arange(width) < lengths[:, None]).ravel()
        return {n: (places, _padded(kept, *column)) for n, column in columns.items()}


def _padded(kept: np.ndarray, padding: int, values: np.ndarray) -> np.ndarray:
    """The values where they are kept, and padding elsewhere."""
    made = np.full(len(kept), padding, np.int32)
    made[kept] = values
    return made
