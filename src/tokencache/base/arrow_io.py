"""Reading and writing beside the work: each in a thread of its own, some steps ahead or behind.

What these threads do is done by C++ and Rust, which let others run meanwhile.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import pyarrow as pa
from blake3 import blake3

from . import limits

Item = TypeVar("Item")


@contextmanager
def ahead(found: Iterator[Item], count: int = 1) -> Iterator[Iterator[Item]]:
    """The same items, of which the next `count` are made in a thread while one is in use.

    The first ones are begun at once, and so many wait at most. An error in making one
    is raised where it would be asked for.
    """
    with ThreadPoolExecutor(1, "reader") as pool:
        end = object()
        coming = deque(pool.submit(next, found, end) for _ in range(count))

        def items() -> Iterator[Item]:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, found, end))
                yield item
                del item  # or it would be held while the next one is waited for

        yield items()


class Writer:
    """An Arrow file in the making: record batches are written and hashed in a thread.

    `write` returns when no more than the machine's settings say wait to be written, one at
    least; errors are raised there, or at the end. As a context manager it closes the file.
    """

    def __init__(self, path: Path, schema: pa.Schema, stream: bool = False) -> None:
        self._file = HashedFile(path)
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        self._writer = new(pa.PythonFile(self._file, mode="w"), schema)
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[tuple[Future, pa.RecordBatch]] = deque()
        self._settings = limits.settings()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                while self._waiting:
                    self._settle()
                self._writer.close()
        finally:
            self._pool.shutdown()
            self._file.close()

    def write(self, batch: pa.RecordBatch) -> None:
        while self._waiting and (self._waiting[0][0].done() or self._is_full(batch)):
            self._settle()
        self._waiting.append((self._pool.submit(self._writer.write_batch, batch), batch))

    def checksum(self) -> str:
        """BLAKE3 of the file's bytes, in hex, after it was closed."""
        return self._file.hasher.hexdigest()

    def _settle(self) -> None:
        self._waiting.popleft()[0].result()

    def _is_full(self, batch: pa.RecordBatch) -> bool:
        """Whether too much would wait with one more."""
        batches = [batch, *(waiting for _, waiting in self._waiting)]
        return not self._settings.may_wait(
            sum(b.num_rows for b in batches), sum(b.nbytes for b in batches)
        )


class HashedFile(io.RawIOBase):
    """A file that is written from start to end; `hasher` has the BLAKE3 of what was written."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=2**20)  # noqa: SIM115
        self.hasher = blake3()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> int:
        self.hasher.update(data)
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
        super().close()
