"""The rows of a cache of either format, some million tokens at a time and in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...base.arrays import as_numpy
from ...base.json_files import read_json
from ...caches.rows import IGNORED, Column
from ...caches.view import VIEW_FILE, checked, open_cache

TOKENS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Block:
    """Rows one after the other.

    columns: by name (rows + 1,) offsets and the values of all rows, as a cache has them;
    pairs: whether labels are targets of their own.
    """

    columns: dict[str, Column]
    pairs: bool = False

    def __len__(self) -> int:
        return len(self.columns["input_ids"][0]) - 1

    @property
    def packed(self) -> bool:
        return "seq_lengths" in self.columns

    @property
    def ids(self) -> np.ndarray:
        """(tokens,) of all rows."""
        return self.columns["input_ids"][1]

    @property
    def tokens(self) -> int:
        """How many; of sources and targets, those of both."""
        return len(self.ids) + (len(self.columns["labels"][1]) if self.pairs else 0)

    @property
    def trained(self) -> np.ndarray:
        """(tokens,) bool: whether there is loss where the token is predicted."""
        return self.columns["labels"][1] != IGNORED

    def documents(self) -> np.ndarray:
        """(documents,) int64 tokens of each document (or window of one), row by row."""
        if self.packed:
            return self.columns["seq_lengths"][1].astype(np.int64)
        return np.diff(self.columns["input_ids"][0]).astype(np.int64)

    def documents_in_rows(self) -> np.ndarray:
        """(rows,) int64 how many documents each row has."""
        if self.packed:
            return np.diff(self.columns["seq_lengths"][0]).astype(np.int64)
        return np.ones(len(self), np.int64)


def blocks(folder: Path, split: str) -> Iterator[Block]:
    """All rows of a split of a cache. Raises UserError as `open_cache` does."""
    checked(folder)
    about = read_json(folder / "cache.json")
    pairs = "source" in about["recipe"]
    if (folder / VIEW_FILE).exists():
        rows = max(1, TOKENS_AT_ONCE // about["settings"]["max_length"])
        view = open_cache(folder, split)
        for start in range(0, len(view), rows):
            yield Block(view.columns(range(start, min(start + rows, len(view)))), pairs)
        return
    for file in read_json(folder / split / "state.json")["_data_files"]:
        path = str(folder / split / file["filename"])
        with pa.memory_map(path) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                columns = {name: _column(batch.column(name)) for name in batch.schema.names}
                yield Block(columns, pairs)


def _column(values: pa.ListArray) -> Column:
    offsets = as_numpy(values.offsets).astype(np.int64)
    return offsets - offsets[0], as_numpy(values.values)[offsets[0] : offsets[-1]]
