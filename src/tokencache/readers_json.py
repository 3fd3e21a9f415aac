"""The rows of JSON Lines and JSON, as tables or as Python objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json

from .errors import UserError
from .readers import (
    HEAD_BYTES,
    ROWS,
    Piece,
    Source,
    blocks,
    checked,
    chunks,
    decompressed,
    line_number,
    no_column,
)

Row = dict[str, Any]

STEP_BYTES = 2**18  # that are looked through at a time

# A line that starts or ends with anything but an object's brace.
_NO_OBJECT = re.compile(rb"^[ \t\r]*[^ \t\r\n{]|[^ \t\r\n}][ \t\r]*$", re.MULTILINE)


def columns(source: Source, stream: BinaryIO) -> list[str]:
    """The columns that the rows have: of JSON Lines, those of the first MiB."""
    whole = Piece(source, 0, 0)
    if source.format == "json":
        found = _values(whole, stream)
    else:
        head = next(chunks(blocks(stream, HEAD_BYTES), b"\n"), b"")
        found = [row for _, row in _parsed(whole, 0, checked(whole, 0, head))]
    return list(dict.fromkeys(name for row in found for name in row))


def tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    missing = _Missing(piece.source, columns)
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
    missing = _Missing(piece.source, columns)
    if piece.source.format == "json":
        found: Iterable[Row] = _values(piece, stream)
    else:
        parts = _jsonl_chunks(piece, stream)
        found = (row for before, part, _ in parts for _, row in _parsed(piece, before, part))
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
    piece and the start of its file lack it is a mistake."""

    def __init__(self, source: Source, wanted: list[str]) -> None:
        self.source, self.unseen, self.any = source, set(wanted), False

    def saw(self, names: Iterable[str]) -> None:
        self.any = True
        if self.unseen:
            self.unseen.difference_update(names)

    def check(self) -> None:
        if not (self.any and self.unseen):
            return
        with open(self.source.path, "rb") as file:
            there = columns(self.source, decompressed(self.source, file))
        for name in sorted(self.unseen.difference(there)):
            raise no_column(self.source.path, name, there)


# JSON Lines


def _jsonl_chunks(piece: Piece, stream: BinaryIO) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """Whole lines of valid UTF-8, the number of lines before them in the piece, and where
    they end."""
    before = 0
    for chunk in chunks(blocks(stream), b"\n"):
        chunk = checked(piece, before, chunk)
        ends = _line_ends(chunk)
        yield before, chunk, ends
        before += len(ends)


def _line_ends(chunk: bytes) -> np.ndarray:
    """Where the newlines are. In steps, for which no memory must be asked of the system."""
    data = np.frombuffer(chunk, np.uint8)
    steps = range(0, max(1, len(data)), STEP_BYTES)
    found = [np.flatnonzero(data[at : at + STEP_BYTES] == ord("\n")) + at for at in steps]
    return np.concatenate(found)


def _jsonl_tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    for before, chunk, ends in _jsonl_chunks(piece, stream):
        table = _arrow_table(chunk, ends, columns)
        if table is None:
            table = _table(_parsed(piece, before, chunk), columns, partial(_at_line, piece))
        yield table


def _arrow_table(chunk: bytes, ends: np.ndarray, columns: list[str]) -> pa.Table | None:
    """The fast way, in C++; None where the chunk holds anything that is to be looked at."""
    rows = _row_count(chunk, ends)
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


def _row_count(chunk: bytes, ends: np.ndarray) -> int | None:
    """How many lines, which end at `ends`, hold an object and nothing else, by their first
    and last sign; None where a line holds anything else.

    pyarrow takes objects that share a line or span lines, which is no JSON Lines, and
    crashes on a first row that is a bare null: no such chunk may get there.
    """
    data = np.frombuffer(chunk, np.uint8)
    ends = ends[ends < len(data) - 1]
    for end in (b"\n", b"\r\n"):  # quick for what files mostly look like
        edge = enumerate(b"}" + end + b"{", -len(end))
        around = chunk.startswith(b"{") and chunk.endswith((b"}" + end, b"}"))
        if around and all((data[ends + place] == sign).all() for place, sign in edge):
            return len(ends) + 1
    if _NO_OBJECT.search(chunk):
        return None
    return sum(1 for line in chunk.split(b"\n") if line.strip(b" \t\r"))


def _parsed(piece: Piece, before: int, chunk: bytes) -> Iterator[tuple[int, Row]]:
    """Each row with the number of lines before it in the piece."""
    for number, line in enumerate(chunk.decode().split("\n"), before):
        if line.strip(" \t\r"):
            yield number, _object(line, partial(_at_line, piece, number))


def _at_line(piece: Piece, before: int) -> str:
    return f"{piece.source.path}:{line_number(piece, before)}"


def _object(line: str, where: Callable[[], str]) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where()}: broken JSON: {error.msg} (column {error.colno}); mend or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where()}: JSON that can't be read: {error}") from None
    return _row(row, where)


def _row(row: Any, where: Callable[[], str]) -> Row:
    if not isinstance(row, dict):
        raise UserError(
            f'{where()}: the row is {_kind(row)}, not an object like {{"text": "…"}}; '
            "mend or remove it"
        )
    return row


def _table(
    rows: Iterable[tuple[int, Row]], columns: list[str], where: Callable[[int], str]
) -> pa.Table:
    """Rows that were parsed in Python as a table; `where` makes a row's number its place."""
    found: dict[str, list[str | None]] = {name: [] for name in columns}
    for number, row in rows:
        for name, values in found.items():
            values.append(_text(row.get(name), name, partial(where, number)))
    return pa.table({name: pa.array(v, pa.large_string()) for name, v in found.items()})


def _text(value: Any, name: str, where: Callable[[], str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{where()}: column {name!r} is {_kind(value)}, not text; make it a string in the "
            "file, or take another column"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("unicode_escape").decode()
        raise UserError(
            f"{where()}: column {name!r} has half a character, {half}, which is no text; "
            "mend or remove the row"
        ) from None
    return value


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value)) or f"the number {value}"


# JSON


def _values(piece: Piece, stream: BinaryIO) -> list[Row]:
    """The rows of one array of objects, bare or as {"data": [...]}."""
    path = piece.source.path
    data = checked(piece, 0, b"".join(blocks(stream)))
    if not data.strip(b" \t\r\n"):
        return []
    try:
        value = json.loads(data.decode())
    except json.JSONDecodeError as error:
        hint = "mend the file"
        if error.msg == "Extra data":
            hint = "if each line is an object, set format: jsonl or name the file .jsonl"
        raise UserError(
            f"{path}:{error.lineno}: broken JSON: {error.msg} (column {error.colno}); {hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: JSON that can't be read: {error}") from None
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise UserError(
            f'{path}: JSON must be an array of objects, or {{"data": [...]}}; where each line '
            "is an object, set format: jsonl or name the file .jsonl"
        )
    return [_row(row, partial(_at_row, path, n)) for n, row in enumerate(value, 1)]


def _at_row(path: str, number: int) -> str:
    return f"{path}: row {number}"


def _json_tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    values = _values(piece, stream)
    for start in range(0, len(values), ROWS):
        numbered = enumerate(values[start : start + ROWS], start + 1)
        yield _table(numbered, columns, partial(_at_row, piece.source.path))
