"""The rows of JSON Lines and JSON, as tables or as Python objects."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json

from ..errors import UserError
from .json_columns import Columns
from .json_rows import Row, at_line, at_row, kind, parsed, values
from .source import ROWS, Piece, Source, blocks, decompressed, no_column, places, rows_in

# A line that starts or ends with anything but an object's brace.
_NO_OBJECT = re.compile(rb"^[ \t\r]*[^ \t\r\n{]|[^ \t\r\n}][ \t\r]*$", re.MULTILINE)


def columns(source: Source, stream: BinaryIO) -> list[str]:
    """The columns that any of a file's rows has."""
    if source.format == "json":
        rows = values(Piece(source, 0, 0), stream)
        return list(dict.fromkeys(name for row in rows for name in row))
    found = Columns(source)
    for block in blocks(stream):
        found.feed(block)
    return found.found()


def tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    missing = _Missing(piece, columns)
    if piece.source.format == "json":
        found = _json_tables(piece, columns, stream)
    else:
        found = _jsonl_tables(piece, columns, stream)
    for table in found:
        if table.num_rows:
            missing.saw(n for n in columns if table.column(n).null_count < table.num_rows)
            yield table
    missing.check()


def rows(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[list[Row]]:
    missing = _Missing(piece, columns)
    if piece.source.format == "json":
        found: Iterable[Row] = values(piece, stream)
    else:
        parts = rows_in(piece, blocks(stream), b"\n")
        found = (row for before, part in parts for _, row in parsed(piece, before, part))
    batch: list[Row] = []
    for row in found:
        batch.append({name: row[name] for name in columns if name in row})
        missing.saw(batch[-1])
        if len(batch) == ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
    missing.check()


class _Missing:
    """Columns that no row had. One row may lack a key, which makes its value null; that a
    whole file lacks it is a mistake. (Of a file in pieces, the plan has looked at all.)"""

    def __init__(self, piece: Piece, wanted: list[str]) -> None:
        self.piece, self.unseen, self.any = piece, set(wanted), False

    def saw(self, names: Iterable[str]) -> None:
        self.any = True
        if self.unseen:
            self.unseen.difference_update(names)

    def check(self) -> None:
        source = self.piece.source
        if not (self.any and self.unseen) or self.piece.start:
            return
        with open(source.path, "rb") as file:
            if self.piece.stop < os.fstat(file.fileno()).st_size:
                return
            there = columns(source, decompressed(source, file))
        for name in sorted(self.unseen.difference(there)):
            raise no_column(source.path, name, there)


# JSON Lines


def _jsonl_tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    for before, chunk in rows_in(piece, blocks(stream), b"\n"):
        table = _arrow_table(chunk, columns)
        if table is None:
            table = _table(parsed(piece, before, chunk), columns, partial(at_line, piece))
        yield table


def _arrow_table(chunk: bytes, columns: list[str]) -> pa.Table | None:
    """The fast way, in C++; None where the chunk holds anything that is to be looked at."""
    rows = _row_count(chunk)
    if rows is None or len(chunk) > 2**31 - 64:
        return None
    if rows == 0:
        return pa.table({name: pa.array([], pa.large_string()) for name in columns})
    schema = pa.schema([(name, pa.large_string()) for name in columns])
    try:
        table = pa.json.read_json(
            pa.BufferReader(chunk),
            pa.json.ReadOptions(use_threads=False, block_size=len(chunk) + 16),
            pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    return table if table.num_rows == rows else None


def _row_count(chunk: bytes) -> int | None:
    """How many lines hold an object and nothing else, by their first and last sign; None
    where a line holds anything else.

    pyarrow takes objects that share a line or span lines, which is no JSON Lines, and
    crashes on a first row that is a bare null: no such chunk may get there.
    """
    data = np.frombuffer(chunk, np.uint8)
    ends = places(data, b"\n")
    ends = ends[ends < len(data) - 1]
    for end in (b"\n", b"\r\n"):  # quick for what files mostly look like
        edge = enumerate(b"}" + end + b"{", -len(end))
        around = chunk.startswith(b"{") and chunk.endswith((b"}" + end, b"}"))
        if around and all((data[ends + place] == sign).all() for place, sign in edge):
            return len(ends) + 1
    if _NO_OBJECT.search(chunk):
        return None
    return sum(1 for line in chunk.split(b"\n") if line.strip(b" \t\r"))


def _table(
    rows: Iterable[tuple[int, Row]], columns: list[str], where: Callable[[int], str]
) -> pa.Table:
    """Rows that were parsed in Python as a table; `where` makes a row's number its place."""
    found: dict[str, list[str | None]] = {name: [] for name in columns}
    for number, row in rows:
        for name, texts in found.items():
            texts.append(_text(row.get(name), name, partial(where, number)))
    return pa.table({name: pa.array(v, pa.large_string()) for name, v in found.items()})


def _text(value: Any, name: str, where: Callable[[], str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{where()}: column {name!r} is {kind(value)}, not text; make it a string in the "
            "file, or take another column"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("unicode_escape").decode()
        raise UserError(
            f"{where()}: column {name!r} has half a character, {half}, which is no text; "
            "repair or remove the row"
        ) from None
    return value


# JSON


def _json_tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    found = values(piece, stream)
    for start in range(0, len(found), ROWS):
        numbered = enumerate(found[start : start + ROWS], start + 1)
        yield _table(numbered, columns, partial(at_row, piece.source.path))
