"""The rows and the digests of Parquet and Arrow files, by row group and record batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from ..base.hashing import KEY_DIGITS
from ..errors import UserError, shown
from .nested import as_json
from .source import CHUNK_BYTES, Piece, Source, no_column, python_rows

MAGIC = b"ARROW1"  # starts an IPC file; an IPC stream has none


def columns(source: Source) -> list[str]:
    with _understood(source):
        if source.format == "parquet":
            return pq.read_schema(source.path).names
        with _arrow(source) as reader:
            return reader.schema.names


def units(source: Source, start: int = 0, stop: int | None = None) -> list[tuple[int, str]]:
    """(bytes, digest) of the row groups or record batches [start, stop) of a file.

    A digest is of the schema and the unit's own bytes (dictionaries included), wherever
    in the file it lies.
    """
    with _understood(source):
        found = _row_groups if source.format == "parquet" else _record_batches
        return list(found(source, start, stop))


def tables(piece: Piece, names: list[str]) -> Iterator[pa.Table]:
    """The named columns as large_string. Raises UserError for columns that are no text."""
    row = 0
    for table in _tables(piece, names):
        texts = {name: _text(piece, name, table.column(name), row) for name in names}
        row += table.num_rows
        yield pa.table(texts)


def rows(piece: Piece, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    row = 0
    for table in _tables(piece, names):
        for name in names:
            _check_encoding(piece, name, table.column(name), row)
        row += table.num_rows
        nested = {name: change for name in names if (change := as_json(table.field(name).type))}
        for found in python_rows(table):
            for one in found:
                one |= {name: change(one[name]) for name, change in nested.items()}
            yield found


@contextmanager
def _understood(source: Source) -> Iterator[None]:
    """pyarrow's errors about what a file holds, as the user's."""
    try:
        yield
    except UnicodeDecodeError as error:
        name = error.object.decode(errors="backslashreplace")
        raise UserError(
            f"{source.path}: the name of a column is invalid UTF-8: {shown(name)}; write the "
            "file with another name"
        ) from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source.path}: can't be read as {source.format}: {first}; write the file again, "
            "or set format: to what it is"
        ) from None


def _tables(piece: Piece, names: list[str]) -> Iterator[pa.Table]:
    """The named columns as the file has them, in tables of about CHUNK_BYTES, not empty."""
    there = columns(piece.source)
    for name in names:
        if name not in there:
            raise no_column(piece.source.path, name, there)
        if there.count(name) > 1:
            raise UserError(
                f"{piece.source.path}: there are {there.count(name)} columns {shown(name)!r}"
            )
    batches = _parquet_batches if piece.source.format == "parquet" else _arrow_batches
    with _understood(piece.source):
        for batch in batches(piece, names):
            batch.validate()  # that no offset lies beyond its buffer
            table = pa.Table.from_batches([batch]).select(names)
            step = max(1, table.num_rows * CHUNK_BYTES // max(table.nbytes, CHUNK_BYTES))
            for start in range(0, table.num_rows, step):
                yield table.slice(start, step)


# Parquet


def _row_groups(source: Source, start: int, stop: int | None) -> Iterator[tuple[int, str]]:
    with open(source.path, "rb") as file, pq.ParquetFile(file) as parquet:
        metadata = parquet.metadata
        schema = repr([_column_facts(parquet.schema.column(i)) for i in range(len(parquet.schema))])
        last = metadata.num_row_groups
        for number in range(start, last if stop is None else min(stop, last)):
            group = metadata.row_group(number)
            hasher, size = blake3(schema.encode()), 0
            for i in range(group.num_columns):
                chunk = group.column(i)
                hasher.update(f"{chunk.compression} {chunk.num_values}\n".encode())
                file.seek(_first_page(chunk))
                left = chunk.total_compressed_size
                while left > 0 and (block := file.read(min(left, CHUNK_BYTES))):
                    hasher.update(block)
                    left -= len(block)
                size += chunk.total_compressed_size
            yield size, hasher.hexdigest()[:KEY_DIGITS]


def _column_facts(column: pq.ColumnSchema) -> list[Any]:
    """What the bytes of a column mean; not str(column), which another pyarrow may write anew."""
    levels = [column.max_definition_level, column.max_repetition_level, column.length]
    return [column.path, column.physical_type, str(column.logical_type), *levels]


def _first_page(chunk: pq.ColumnChunkMetaData) -> int:
    dictionary = chunk.dictionary_page_offset  # some writers say 0 for none
    return min(dictionary or chunk.data_page_offset, chunk.data_page_offset)


def _parquet_batches(piece: Piece, names: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(piece.source.path, buffer_size=2**20) as file:
        for number in range(piece.start, piece.stop):
            group = file.metadata.row_group(number)
            size = group.total_byte_size  # of all columns, unpacked
            at_once = group.num_rows * CHUNK_BYTES // max(size, 1)
            yield from file.iter_batches(
                min(max(at_once, 64), 65_536), [number], names, use_threads=False
            )


# Arrow


# Read and not mapped into memory: a file that is cut short meanwhile would end the process.


@contextmanager
def _arrow(source: Source, names: list[str] | None = None) -> Iterator[Any]:
    """A reader of an IPC file or stream, whichever it is; of the named columns alone."""
    with pa.OSFile(source.path) as file:
        is_file = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
        open_as = pa.ipc.open_file if is_file else pa.ipc.open_stream
        options = pa.ipc.IpcReadOptions(use_threads=False)
        if names is not None:
            with open_as(file) as reader:
                options.included_fields = [reader.schema.get_field_index(n) for n in names]
            file.seek(0)
        with open_as(file, options=options) as reader:
            yield reader


def _record_batches(source: Source, start: int, stop: int | None) -> Iterator[tuple[int, str]]:
    with _arrow(source) as reader:
        schema = reader.schema.to_string(show_field_metadata=False, show_schema_metadata=False)
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        if is_file:  # what follows its batches is no message
            stop = min([reader.num_record_batches] + ([] if stop is None else [stop]))
    # An IPC file may have its dictionaries anywhere: there, all of them belong to each batch.
    dictionaries = blake3(schema.encode())
    if is_file and "dictionary<" in schema:
        for message in _messages(source):
            if message.type == "dictionary":
                _add(dictionaries, message)
    number = 0
    for message in _messages(source):
        if number == stop:
            return
        if message.type == "dictionary" and not is_file:
            _add(dictionaries, message)
        elif message.type == "record batch":
            if number >= start:
                hasher = dictionaries.copy()
                _add(hasher, message)
                yield message.body.size, hasher.hexdigest()[:KEY_DIGITS]
            number += 1


def _messages(source: Source) -> Iterator[pa.ipc.Message]:
    """An IPC file is a stream with eight bytes before it and an index behind it."""
    with pa.OSFile(source.path) as file:
        file.seek(8 if file.read(len(MAGIC)) == MAGIC else 0)
        yield from pa.ipc.MessageReader.open_stream(file)


def _add(hasher: blake3, message: pa.ipc.Message) -> None:
    hasher.update(message.metadata)
    if message.body is not None:
        hasher.update(message.body)


def _arrow_batches(piece: Piece, names: list[str]) -> Iterator[pa.RecordBatch]:
    with _arrow(piece.source, names) as reader:
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            for number in range(piece.start, piece.stop):
                yield reader.get_batch(number)
            return
        for number, batch in enumerate(reader):
            if number >= piece.stop:
                return
            if number >= piece.start:
                yield batch


# Text


def _text(piece: Piece, name: str, column: pa.ChunkedArray, row: int) -> pa.ChunkedArray:
    kind = column.type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not _is_text(values) and not pa.types.is_null(values):
        raise UserError(
            f"{piece.source.path}: column {name!r} is of type {kind}, not text; write it as a "
            "string, or take another column"
        )
    _check_encoding(piece, name, column, row)
    if pa.types.is_dictionary(kind):
        column = column.cast(values)
    return column.cast(pa.large_string())


def _is_text(kind: pa.DataType) -> bool:
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_string or pa.types.is_string_view(kind)


def _check_encoding(piece: Piece, name: str, column: pa.ChunkedArray, row: int) -> None:
    """pyarrow takes any bytes for a string; `row` is the first one's number in the piece."""
    try:
        column.validate(full=True)
        return
    except pa.ArrowInvalid as error:
        problem = str(error)
    if "UTF8" not in problem:
        raise UserError(f"{piece.source.path}: column {name!r} is broken: {problem}")
    # No value is made a Python object: what else is broken may end the process.
    where = f"rows {row + 1:,} to {row + len(column):,}"
    if _is_text(column.type):
        wrong = (n for n in range(len(column)) if not _is_valid(column.slice(n, 1)))
        where = f"row {row + next(wrong) + 1:,}"
    raise UserError(
        f"{piece.source.path}: {where} from {_unit(piece)}: column {name!r} is invalid UTF-8; "
        "repair it"
    )


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _unit(piece: Piece) -> str:
    kind = "row group" if piece.source.format == "parquet" else "record batch"
    return f"{kind} {piece.start} on"
