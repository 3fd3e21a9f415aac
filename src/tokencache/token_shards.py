"""Token shards read back: the documents of many, as arrays over memory-mapped files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .errors import UserError
from .readers import as_numpy


@dataclass(frozen=True)
class Segment:
    """One record batch of a token shard, memory-mapped.

    ids: (tokens,) uint16 or int32; offsets: (documents + 1,) int64 into ids;
    spans: (k, 2) int64 positions in ids that are trained on, in order and apart; None for all.
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray | None


class Documents:
    """The documents of some token shards as arrays over all of them.

    segment, start, length: (n,) int64, where document i lies; shard: (n,) the
    number of its token shard; row: (n,) its number in that shard. dtype: of the ids.
    Raises UserError for a shard that is not there.
    """

    def __init__(self, paths: list[str]) -> None:
        self.segments: list[Segment] = []
        self.dtype = np.dtype(np.int32)
        columns: list[tuple[np.ndarray, ...]] = []
        for number, path in enumerate(paths):
            first = 0
            self.dtype, segments = _segments(path)
            for segment in segments:
                count = len(segment.offsets) - 1
                rows = np.arange(first, first + count)
                columns.append((
                    np.full(count, len(self.segments)), segment.offsets[:-1],
                    np.diff(segment.offsets), np.full(count, number), rows,
                ))  # fmt: skip
                self.segments.append(segment)
                first += count
        empty = np.zeros(0, np.int64)
        joined = [np.concatenate(c) for c in zip(*columns, strict=True)] or [empty] * 5
        self.segment, self.start, self.length, self.shard, self.row = joined

    def __len__(self) -> int:
        return len(self.length)

    @property
    def masked(self) -> bool:
        return any(segment.spans is not None for segment in self.segments)


def _segments(path: str) -> tuple[np.dtype, list[Segment]]:
    """The type of a shard's ids, which an empty one has too, and its record batches."""
    try:
        source = pa.memory_map(path)
    except FileNotFoundError:
        raise UserError(
            f"token shard {path} is missing: it was removed after the plan was made; "
            "run snakemake again"
        ) from None
    found = []
    with pa.ipc.open_file(source) as reader:
        dtype = np.dtype(reader.schema.field("input_ids").type.value_type.to_pandas_dtype())
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            ids = batch.column("input_ids")
            spans = None
            if "loss_spans" in batch.schema.names:
                spans = _absolute_spans(batch.column("loss_spans"), ids)
            offsets = as_numpy(ids.offsets)
            found.append(Segment(as_numpy(ids.values), offsets, spans))
    return dtype, found


def _absolute_spans(column: pa.LargeListArray, ids: pa.LargeListArray) -> np.ndarray:
    """(k, 2) spans relative to their document as positions in the segment."""
    pairs = as_numpy(column.values).astype(np.int64).reshape(-1, 2)
    in_document = np.diff(as_numpy(column.offsets)) // 2
    return pairs + np.repeat(as_numpy(ids.offsets)[:-1], in_document)[:, None]
