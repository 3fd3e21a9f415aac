"""Token shards read back: the documents of many, in memory-mapped files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..base import limits
from ..base.arrays import as_numpy
from ..base.hashing import hash_file
from ..base.json_files import read_json
from ..base.manifest import REPAIR, beside
from ..base.progress import Progress
from ..errors import UserError

ROW_HASH = "row_hash"
ID_TYPES = (np.dtype(np.uint16), np.dtype(np.int32))


def schema_of(ids: np.dtype, masked: bool) -> pa.Schema:
    """The columns of a token shard. masked: whether only spans of a document are trained on."""
    columns = {"input_ids": pa.large_list(pa.from_numpy_dtype(ids)), ROW_HASH: pa.uint64()}
    if masked:
        columns["loss_spans"] = pa.large_list(pa.int32())
    return pa.schema(columns)


@dataclass(frozen=True)
class Segment:
    """One record batch of a token shard, memory-mapped.

    ids: (tokens,) uint16 or int32; offsets: (documents + 1,) int64 into ids; hashes:
    (documents,) uint64 of the rows of the source;
    spans: (k, 2) int32 places in their document that are trained on, in order and apart,
    of which `spans_of[d]:spans_of[d + 1]` are document d's; None where all is trained on.
    """

    ids: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    spans: np.ndarray | None
    spans_of: np.ndarray | None

    def __len__(self) -> int:
        return len(self.offsets) - 1


REMAKE = f"remove it and run snakemake again, which makes it anew; {REPAIR}"

# What to say of a token shard that is not there, after its path.
LOST = (
    "is missing: it was removed after the plan was made; run snakemake again, which makes it anew"
)


class Segments:
    """The record batches of some token shards, in order; each is opened when it is needed.

    path(number): that of its shard; batches: (n,) their numbers there; first: (n + 1,) int64
    the number of the first document of each, over all; lost: what to say of a shard that is
    not there. Raises UserError for such a one, and for one that holds something else.
    """

    def __init__(
        self, path: Callable[[int], str], batches: np.ndarray, documents: np.ndarray, lost: str
    ) -> None:
        self.path, self.batches, self.lost = path, batches, lost
        self.first = np.concatenate([[0], np.cumsum(documents, dtype=np.int64)])
        self._opened: dict[int, Segment] = {}

    def __getitem__(self, number: int) -> Segment:
        if number not in self._opened:
            path = self.path(number)
            found = _read(path, self.lost)[1]
            first = number - int(self.batches[number])
            stop = first + len(found)
            batches, counts = self.batches[first:stop], np.diff(self.first[first : stop + 1])
            as_made = batches.tolist() == list(range(len(found)))
            if number >= stop or not as_made or counts.tolist() != [len(s) for s in found]:
                raise UserError(f"token shard {path} is not what it was when it was made; {REMAKE}")
            self._opened.update(enumerate(found, first))
        return self._opened[number]

    def __len__(self) -> int:
        return len(self.batches)

    def of(self, documents: np.ndarray) -> np.ndarray:
        """(n,) the segment of each document."""
        return np.searchsorted(self.first, documents, "right") - 1


class Documents:
    """All documents of some token shards.

    length: (n,) int64 tokens of each; counts: (shards,) int64 documents of each shard;
    segments: where they lie; dtype: of the ids; masked: whether only some tokens are
    trained on. Raises UserError for a shard that is not there.
    """

    def __init__(self, paths: list[str]) -> None:
        self.dtype, self.masked = np.dtype(np.int32), False
        opened: list[Segment] = []
        files, batches, counts = [], [], []
        _read_beforehand(paths)
        label = "pack: look into token shards"
        with Progress(len(paths), "token shards", label, passing=True) as progress:
            for path in paths:
                self.dtype, found = _read(path, LOST)
                files += [path] * len(found)
                batches += range(len(found))
                counts.append(sum(map(len, found)))
                opened += found
                progress.update(1)
        self.masked = any(segment.spans is not None for segment in opened)
        self.counts = np.array(counts, np.int64)
        lengths = [np.diff(segment.offsets) for segment in opened]
        self.length = np.concatenate([np.zeros(0, np.int64), *lengths])
        documents = np.array([len(segment) for segment in opened], np.int64)
        self.segments = Segments(files.__getitem__, np.array(batches, np.int32), documents, LOST)
        self.segments._opened.update(enumerate(opened))

    def __len__(self) -> int:
        return len(self.length)

    def hashes(self) -> np.ndarray:
        """(n,) uint64 of the rows that the documents are made of."""
        segments = (self.segments[number] for number in range(len(self.segments)))
        return np.concatenate([np.zeros(0, np.uint64), *(one.hashes for one in segments)])


def _read_beforehand(paths: list[str]) -> None:
    """Have the system read whole files where memory is plenty: rows are copied out of them
    in no order, and a disk is faster from start to end."""
    there = [path for path in paths if os.path.exists(path)]
    if not hasattr(os, "posix_fadvise"):  # on macOS
        return
    if limits.settings().whole_files(sum(map(os.path.getsize, there))):
        for path in there:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def check_bytes(paths: list[str]) -> None:
    """Raises UserError for a token shard that has other bytes than were written.

    What is made of such a one would have checksums that fit, and nobody would find it later.
    """
    paths = list(dict.fromkeys(paths))
    total = sum(map(os.path.getsize, paths))
    with Progress(total, "bytes", "pack: check token shards", passing=True) as progress:
        for path in paths:
            try:
                made = read_json(beside(path)).get("checksum")
            except FileNotFoundError:  # nothing is said of it
                continue
            if made and hash_file(path) != made:
                raise UserError(
                    f"token shard {path} is damaged: it has other bytes than were written (its "
                    f"checksum differs); {REMAKE}"
                )
            progress.update(os.path.getsize(path))


def check_size(path: str, lost: str) -> None:
    """Raises UserError for a token shard that is not there, or is not as long as it was made.

    Where nothing is said beside it of how long that was, the end of its file tells.
    """
    try:
        found = os.stat(path).st_size
        made = read_json(beside(path))["bytes"]
    except FileNotFoundError:
        if not os.path.exists(path):
            raise UserError(f"token shard {path} {lost}") from None
        return
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{beside(path)} is damaged; {REPAIR}") from None
    if found != made:
        raise UserError(
            f"token shard {path} is damaged: it has {found:,} bytes instead of {made:,}; {REMAKE}"
        )


def _read(path: str, lost: str) -> tuple[np.dtype, list[Segment]]:
    """The type of a shard's ids, which an empty one has too, and its record batches."""
    check_size(path, lost)
    try:
        # What is mapped stays mapped when the file is closed: any number can be in use.
        with pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()  # that what it says of itself fits together
            dtype = reader.schema.field("input_ids").type.value_type.to_pandas_dtype()
            segments = [_segment(batch) for batch in batches]
    except FileNotFoundError:
        raise UserError(f"token shard {path} {lost}") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"token shard {path} can't be read ({error}); {REMAKE}") from None
    return np.dtype(dtype), segments


def _segment(batch: pa.RecordBatch) -> Segment:
    ids = batch.column("input_ids")
    spans = spans_of = None
    if "loss_spans" in batch.schema.names:
        column = batch.column("loss_spans")
        spans, spans_of = as_numpy(column.values).reshape(-1, 2), as_numpy(column.offsets) // 2
    hashes = as_numpy(batch.column("row_hash"))
    return Segment(as_numpy(ids.values), as_numpy(ids.offsets), hashes, spans, spans_of)
