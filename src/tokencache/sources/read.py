"""Data files: their columns, and their pieces' digests and rows.

What is read is checked against the digest that the plan has for it: no row of a file
that changed meanwhile ends under the old file's key.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
from blake3 import blake3

from ..base.hashing import KEY_DIGITS
from ..errors import UserError
from . import csv_rows, json_text
from . import source as readers
from .find import COLUMNAR
from .source import BOM, Piece, Source
from .text_rows import TEXT, text_tables

# What a source has


def columns(source: Source) -> list[str]:
    """The columns of a source, in its order; none of an empty file.

    Of JSON and JSON Lines they are those of all rows. Raises UserError for a file that is
    broken where it is looked at.
    """
    with named_errors(source):
        if source.format == "text":
            return [TEXT]
        if os.stat(source.path).st_size == 0:
            return []
        if source.format in COLUMNAR:
            return _columnar().columns(source)
        with open(source.path, "rb") as file:
            return _columns(source, file)


def _columns(source: Source, file: BinaryIO) -> list[str]:
    stream = readers.decompressed(source, file)
    match source.format:
        case "text":
            return [TEXT]
        case "csv" | "tsv":
            return csv_rows.columns(source, stream)
        case _:
            return json_text.columns(source, stream)


def units(source: Source) -> list[tuple[int, str]]:
    """(bytes, digest) of each row group or record batch. A unit that is put behind
    others changes none of theirs."""
    with named_errors(source):
        return _columnar().units(source)


def digest_of_units(digests: list[str]) -> str:
    return blake3("\n".join(digests).encode()).hexdigest()[:KEY_DIGITS]


def digest(piece: Piece) -> str:
    """The key of a piece: BLAKE3 of its bytes as they lie in the file (see `ending`), or of its
    units."""
    with named_errors(piece.source):
        if piece.source.format in COLUMNAR:
            found = _columnar().units(piece.source, piece.start, piece.stop)
            return digest_of_units([unit for _, unit in found])
        with open(piece.source.path, "rb") as file:
            return _Hashed(file, piece).digest()


def digest_and_columns(whole: Piece, told: Callable[[int], None]) -> tuple[str, list[str]]:
    """Of a file that can't be cut. told: how many more bytes have been read."""
    with named_errors(whole.source), open(whole.source.path, "rb") as file:
        hashed = _Hashed(file, whole, told)
        columns = _columns(whole.source, hashed)
        found = hashed.digest()
        if hashed.left:
            raise changed(whole.source)
        return found, columns


def hasher(start: int, head: bytes) -> blake3:
    """For a piece's bytes. A byte order mark is dropped at the start of a file and kept at
    that of a later piece, so there the same bytes have another key."""
    if start and head.startswith(BOM):
        return blake3(derive_key_context="tokencache: a byte order mark inside a file")
    return blake3()


def ending(source: Source, last: bytes) -> bytes:
    """What is hashed behind a piece with this last byte: the newline that the last line of a
    file lacks. It changes no row, so it changes no key. last: empty where nothing is known."""
    plain = source.compression is None and source.format not in COLUMNAR
    if not plain or source.sampling == "document" or last in (b"", b"\n", b"\r"):
        return b""
    return b"\n"


def first_row(source: Source, columns: list[str]) -> dict[str, Any]:
    """The values of some columns in its first row, of any kind; none of an empty file."""
    with named_errors(source), open(source.path, "rb") as file:
        if source.format in COLUMNAR:
            piece, stream = Piece(source, 0, min(1, len(units(source)))), None
        else:
            piece = Piece(source, 0, os.stat(source.path).st_size)
            stream = readers.decompressed(source, file)
        rows = next(_rows(piece, columns, stream), [])
        return rows[0] if rows else {}


# Reading


def read_text(piece: Piece, columns: list[str], digest: str) -> Iterator[pa.Table]:
    """The rows of a piece, in order, as tables of about 16 MiB of large_string columns.

    Null stays null, and a key that a row of JSON lacks is null. Raises UserError for what
    is no text, and, at the latest at the end, where the piece's bytes are not those of
    `digest`: what was read is good only when the iterator has come to its end.
    """
    return _verified(piece, columns, digest, _tables)


def read_rows(piece: Piece, columns: list[str], digest: str) -> Iterator[list[dict[str, Any]]]:
    """The same rows as Python objects of any kind, in lists of at most 1000. A key that a
    row of JSON lacks is absent. Raises as `read_text` does."""
    return _verified(piece, columns, digest, _rows)


def _tables(piece: Piece, columns: list[str], stream: BinaryIO | None) -> Iterator[pa.Table]:
    match piece.source.format:
        case "parquet" | "arrow":
            return _columnar().tables(piece, columns)
        case "jsonl" | "json":
            return json_text.tables(piece, columns, stream)
        case "csv" | "tsv":
            return csv_rows.tables(piece, columns, stream)
        case _:
            return text_tables(piece, columns, stream)


def _rows(piece: Piece, columns: list[str], stream: BinaryIO | None) -> Iterator[list[dict]]:
    match piece.source.format:
        case "parquet" | "arrow":
            yield from _columnar().rows(piece, columns)
        case "jsonl" | "json":
            yield from json_text.rows(piece, columns, stream)
        case _:
            for table in _tables(piece, columns, stream):
                yield from readers.python_rows(table)


def _verified(piece: Piece, columns: list[str], expected: str, read: Callable) -> Iterator[Any]:
    """What `read` yields; an error where the piece is not, or not any more, what is expected."""
    with named_errors(piece.source):
        before = _state(piece.source)
        try:
            if piece.source.format in COLUMNAR:
                if digest(piece) != expected:
                    raise changed(piece.source)
                yield from read(piece, columns, None)
            else:
                with open(piece.source.path, "rb") as file:
                    hashed = _Hashed(file, piece)
                    yield from read(piece, columns, readers.decompressed(piece.source, hashed))
                    if hashed.digest() != expected:
                        raise changed(piece.source)
        except (UserError, pa.ArrowException, OSError):
            # What went wrong may have gone wrong because the file is another one now.
            if _state(piece.source) != before or not _has_digest(piece, expected):
                raise changed(piece.source) from None
            raise
        if _state(piece.source) != before:
            raise changed(piece.source)


def _has_digest(piece: Piece, expected: str) -> bool:
    try:
        return digest(piece) == expected
    except UserError:
        return False


class _Hashed(io.RawIOBase):
    """The bytes of a piece, hashed as they are read. The file must not be used meanwhile."""

    def __init__(
        self, file: BinaryIO, piece: Piece, told: Callable[[int], object] = lambda _: None
    ) -> None:
        self._file, self._told = file, told
        self.left = piece.stop - piece.start
        file.seek(piece.start)
        self._source, self._last = piece.source, b""
        self._hasher = hasher(piece.start, file.read(min(len(BOM), self.left)))
        file.seek(piece.start)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        data = self._file.read(size) if size else b""
        self.left -= len(data)
        self._last = data[-1:] or self._last
        self._hasher.update(data)
        self._told(len(data))
        return data

    def digest(self) -> str:
        """The piece's digest, after what is left of it has been read too."""
        for _ in readers.blocks(self):
            pass
        whole = self._hasher.copy()
        whole.update(ending(self._source, self._last))
        return whole.hexdigest()[:KEY_DIGITS]


def _columnar() -> Any:
    from . import columnar  # with all of Parquet, which most jobs don't read

    return columnar


def _state(source: Source) -> tuple[int, int, int]:
    stat = os.stat(source.path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def changed(source: Source) -> UserError:
    return UserError(
        f"{source.path} changed while it was read (or after the plan was made); run snakemake again"
    )


@contextmanager
def named_errors(source: Source) -> Iterator[None]:
    """Errors of the operating system and of unpacking, as the user's."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{source.path} is gone; put it back, or run snakemake again to plan without it"
        ) from None
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{source.path}: can't be read: {error.strerror}") from None
        how = f"unpacked as {source.compression}" if source.compression else "read"
        raise UserError(
            f"{source.path}: can't be {how}: {error}; the file is broken or cut off: get it again"
        ) from None
    except pa.ArrowException as error:
        raise UserError(f"{source.path}: can't be read as {source.format}: {error}") from None
