"""JSON text as rows, parsed in Python: exact, and each error names its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from ..errors import UserError
from .source import Piece, blocks, checked, line_number, whole

Row = dict[str, Any]

# Of a JSON file, unpacked: it is parsed as a whole, which takes several times its size.
LONGEST_JSON = 2**30


def parsed(piece: Piece, before: int, chunk: bytes) -> Iterator[tuple[int, Row]]:
    """The rows of whole lines, each with the number of lines before it in the piece."""
    for number, line in enumerate(chunk.decode().split("\n"), before):
        if line.strip(" \t\r"):
            yield number, _object(line, partial(at_line, piece, number))


def at_line(piece: Piece, before: int) -> str:
    return f"{piece.source.path}:{line_number(piece, before)}"


def at_row(path: str, number: int) -> str:
    return f"{path}: row {number}"


def values(piece: Piece, stream: BinaryIO) -> list[Row]:
    """The rows of one array of objects, bare or as {"data": [...]}."""
    path = piece.source.path
    data = checked(
        piece, 0, whole(piece, blocks(stream), LONGEST_JSON, "write it as JSON Lines or Parquet")
    )
    if not data.strip(b" \t\r\n"):
        return []
    try:
        value = json.loads(data.decode())
    except json.JSONDecodeError as error:
        hint = "repair the file"
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
    return [_row(row, partial(at_row, path, n)) for n, row in enumerate(value, 1)]


def kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value)) or f"the number {value}"


def _object(line: str, where: Callable[[], str]) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where()}: broken JSON: {error.msg} (column {error.colno}); repair or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where()}: JSON that can't be read: {error}") from None
    return _row(row, where)


def _row(row: Any, where: Callable[[], str]) -> Row:
    if not isinstance(row, dict):
        raise UserError(
            f'{where()}: the row is {kind(row)}, not an object like {{"text": "…"}}; '
            "repair or remove it"
        )
    return row
