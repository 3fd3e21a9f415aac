"""Sources, pieces of them, their bytes, and the rows of plain text.

Every error names the file and, where the format has lines, the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pyarrow as pa

from ..errors import UserError, listed, shown

CHUNK_BYTES = 16 * 2**20
BLOCK_BYTES = 2**20  # that are read at a time where files are cut
STEP_BYTES = 2**18  # that are looked through at a time
HEAD_BYTES = 2**20  # of a file, that are looked at closely
# A row is held in memory several times on its way, so it must have an end.
LONGEST_ROW = 256 * 2**20
ROWS = 1000  # Python rows handed out at a time

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A data file and how it is read.

    format: jsonl, json, csv, tsv, parquet, arrow or text; compression: gz, zst or None;
    sample_by (of text alone): line, paragraph or document.
    """

    path: str
    format: str
    compression: str | None
    sample_by: str

    @property
    def sampling(self) -> str | None:
        """What is a row, where that is a choice."""
        return self.sample_by if self.format == "text" else None


@dataclass(frozen=True)
class Piece:
    """A part of a source: bytes [start, stop) of what can be cut at lines, row groups of
    Parquet, record batches of Arrow; all bytes of what can't be cut."""

    source: Source
    start: int
    stop: int


def no_column(path: str, name: str, there: list[str]) -> UserError:
    return UserError(
        f"{path}: there is no column {shown(name)!r}; there are: {listed(there) or 'none'}"
    )


def python_rows(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, table.num_rows, ROWS):
        yield table.slice(start, ROWS).to_pylist()


# Arrays. `pa.array` and `to_numpy` would do, but they load pandas where there is one.


# Bytes


def decompressed(source: Source, file: BinaryIO) -> BinaryIO:
    """A stream of what a compressed file holds; another file is itself."""
    if source.compression is None:
        return file
    kind = {"gz": "gzip", "zst": "zstd"}[source.compression]
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind)


def blocks(stream: BinaryIO, size: int | None = None) -> Iterator[bytes]:
    while block := stream.read(size or CHUNK_BYTES):
        yield block


def places(data: np.ndarray, signs: bytes) -> np.ndarray:
    """Where these bytes are. In steps, for which no memory must be asked of the system."""
    found = []
    for at in range(0, max(1, len(data)), STEP_BYTES):
        part = data[at : at + STEP_BYTES]
        is_one = part == signs[0]
        for sign in signs[1:]:
            is_one |= part == sign
        found.append(np.flatnonzero(is_one) + at)
    return np.concatenate(found)


def line_count(chunk: bytes) -> int:
    """chunk.count(b"\n"), in a fifth of its time."""
    data = np.frombuffer(chunk, np.uint8)
    steps = range(0, len(data), STEP_BYTES)
    return sum(int(np.count_nonzero(data[at : at + STEP_BYTES] == ord("\n"))) for at in steps)


def rows_in(piece: Piece, found: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Whole rows of valid UTF-8, and the number of lines before them in the piece. Raises
    UserError for a row that is longer than LONGEST_ROW."""
    before = 0
    try:
        for chunk in chunks(found, separator):
            yield before, checked(piece, before, chunk)
            before += chunk.count(b"\n")
    except RowTooLong:
        raise too_long(piece, before) from None


def too_long(piece: Piece, before: int) -> UserError:
    """About the row with `before` lines before it in the piece."""
    return UserError(
        f"{piece.source.path}:{line_number(piece, before)}: a row is longer than "
        f"{LONGEST_ROW // 2**20} MiB; write it as several rows"
    )


class RowTooLong(Exception):
    """There is no separator in LONGEST_ROW bytes."""


def whole(piece: Piece, found: Iterable[bytes], most: int, otherwise: str) -> bytes:
    """All bytes. Raises UserError, which says what to do `otherwise`, for more than `most`."""
    held, size = [], 0
    for block in found:
        held.append(block)
        size += len(block)
        if size > most:
            raise UserError(
                f"{piece.source.path}: it holds more than {most // 2**20} MiB, which are read as "
                f"a whole; {otherwise}"
            )
    return b"".join(held)


def chunks(found: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    """The same bytes, each chunk but the last one ending in a separator. Raises RowTooLong."""
    held: list[bytes] = []
    tail = b""  # of what is held: a separator may begin in it
    for block in found:
        last = (tail + block).rfind(separator) if tail else block.rfind(separator)
        end = last + len(separator) - len(tail)
        if last >= 0:
            yield b"".join((*held, memoryview(block)[:end]))
            held, block = [], block[end:]
            tail = b""
        held.append(block)
        if len(held) * CHUNK_BYTES > LONGEST_ROW and sum(map(len, held)) > LONGEST_ROW:
            raise RowTooLong
        if len(separator) > 1:
            tail = (tail + block)[1 - len(separator) :]
    if any(held):
        yield b"".join(held)


def line_number(piece: Piece, before: int) -> int:
    """The number, from 1, of the line of the file with `before` lines before it in the piece."""
    left = piece.start
    if left:
        with open(piece.source.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, CHUNK_BYTES))):
                before += block.count(b"\n")
                left -= len(block)
    return before + 1


def line_of_row(piece: Piece, row: int) -> int:
    """The number, from 1, of the line of the file that holds a piece's row, from 1, of JSON
    Lines, where blank lines are no rows."""
    with open(piece.source.path, "rb") as file:
        file.seek(piece.start)
        lines = (line for part in chunks(blocks(decompressed(piece.source, file)), b"\n")
                 for line in part.splitlines())  # fmt: skip
        for before, line in enumerate(lines):
            row -= bool(line.strip())
            if row == 0:
                return line_number(piece, before)
    raise ValueError(f"{piece} has no such row")


def checked(piece: Piece, before: int, chunk: bytes) -> bytes:
    """The chunk, which has `before` lines before it in the piece, without the byte order
    mark that a file may start with. Raises UserError where it is not UTF-8."""
    if before == 0 and piece.start == 0:
        chunk = chunk.removeprefix(BOM)
    try:
        _one_text(chunk).validate(full=True)
    except pa.ArrowInvalid:
        _raise_encoding(piece, before, chunk)
    return chunk


def _one_text(chunk: bytes) -> pa.LargeStringArray:
    """One string of these bytes, neither copied nor checked."""
    offsets = pa.py_buffer(np.array([0, len(chunk)], np.int64))
    return pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(chunk))


def _raise_encoding(piece: Piece, before: int, chunk: bytes) -> NoReturn:
    try:
        chunk.decode()
    except UnicodeDecodeError as error:
        start = chunk.rfind(b"\n", 0, error.start) + 1
        line = line_number(piece, before + chunk.count(b"\n", 0, error.start))
        raise UserError(
            f"{piece.source.path}:{line}: invalid UTF-8: byte 0x{chunk[error.start]:02x}, number "
            f"{error.start - start + 1} of the line; save the file as UTF-8"
        ) from None
    raise AssertionError("what is UTF-8 to one is none to the other")


# Text
