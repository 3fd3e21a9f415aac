"""The rows of CSV and TSV, in the dialect of Python's csv module and pyarrow.

A quote opens a value where it stands at the value's start, and is a sign like others elsewhere.
What both libraries read in silence, and nobody means, is refused with its line: a quote that is
never closed, text behind a closing quote, and a carriage return that ends no line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ..errors import UserError, shown
from . import source as readers
from .source import BOM, HEAD_BYTES, Piece, Source, blocks, checked, line_count, no_column, places

BLOCK_BYTES = 4 * 2**20  # looked through for quotes at a time

_ANYTHING = re.compile(rb"[^\r\n]")

REPAIR = 'a value with the delimiter, a quote or a line end stands in "…", each quote in it as ""'


def columns(source: Source, stream: BinaryIO) -> list[str]:
    piece = Piece(source, 0, 0)
    for before, chunk in _rows_in(piece, blocks(stream, HEAD_BYTES)):
        header, _ = _header(piece, before, chunk)
        if header:
            return header
    return []


def tables(piece: Piece, names: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    """Every value as text: an empty one is "", and nothing stands for null."""
    header: list[str] = []
    for before, chunk in _rows_in(piece, blocks(stream, min(BLOCK_BYTES, readers.CHUNK_BYTES))):
        if not header:
            header, end = _header(piece, before, chunk)
            before += chunk.count(b"\n", 0, end)
            chunk = chunk[end:]
            for name in names if header else []:
                if name not in header:
                    raise no_column(piece.source.path, name, header)
        if _ANYTHING.search(chunk):
            yield _table(piece, before, chunk, header, names)


def _delimiter(source: Source) -> str:
    return "\t" if source.format == "tsv" else ","


def _header(piece: Piece, before: int, chunk: bytes) -> tuple[list[str], int]:
    """The names of the columns, and where the rows begin."""
    found = (parsed for parsed in _parsed(piece.source, chunk) if parsed[0])
    header, _, end = next(found, ([], 0, len(chunk)))
    for name in header:
        if name and header.count(name) > 1:
            raise UserError(
                f"{piece.source.path}: two columns are called {shown(name)!r}; give each a "
                "name of its own"
            )
    return header, end


def _parsed(source: Source, chunk: bytes) -> Iterator[tuple[list[str], int, int]]:
    """Each row as the csv module reads it, the number of its first line, and where it ends."""
    csv.field_size_limit(2**31 - 1)
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in io.BytesIO(chunk):
            end += len(line)
            yield line.decode()

    first = 1
    reader = csv.reader(lines(), delimiter=_delimiter(source))
    for row in reader:
        yield row, first, end
        first = reader.line_num + 1


def _table(
    piece: Piece, before: int, chunk: bytes, header: list[str], names: list[str]
) -> pa.Table:
    from pyarrow import csv as arrow_csv  # which most jobs don't read

    try:
        return arrow_csv.read_csv(
            pa.BufferReader(chunk),
            arrow_csv.ReadOptions(
                use_threads=False, block_size=len(chunk) + 1, column_names=header
            ),
            arrow_csv.ParseOptions(delimiter=_delimiter(piece.source), newlines_in_values=True),
            arrow_csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.large_string() for name in names},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        problem = error
    for row, line, _ in _parsed(piece.source, chunk):
        if row and len(row) != len(header):
            raise UserError(
                f"{piece.source.path}:{before + line}: a row of {len(row)} values under a header "
                f"of {len(header)}; repair the row ({REPAIR})"
            )
    raise UserError(
        f"{piece.source.path}: broken CSV in the lines from {before + 1} on: {problem}"
    ) from None


# Where rows end


def _rows_in(piece: Piece, found: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Whole rows of valid UTF-8, and the number of lines before them."""
    held, before = b"", 0
    for number, block in enumerate(found):
        block = block.removeprefix(BOM) if number == 0 else block
        held = held + block if held else block
        quotes = _quotes(piece, before, held)
        end = _last_end(held, quotes)
        if end:
            chunk, held = held[:end], held[end:]
            _refuse_bare_returns(piece, before, chunk, quotes)
            yield before, checked(piece, before, chunk)
            before += line_count(chunk)
        elif len(held) > readers.CHUNK_BYTES:
            _refuse_bare_returns(piece, before, held, quotes)
            raise _too_long(piece, before, held, quotes)
    quotes = _quotes(piece, before, held)
    _refuse_bare_returns(piece, before, held, quotes)
    if len(quotes) % 2:
        line = _line_of_open(before, held, quotes)
        raise UserError(
            f"{piece.source.path}:{line}: the value's quote (\") is never closed, so the rest of "
            f"the file would be in it; repair the row ({REPAIR})"
        )
    if held:
        yield before, checked(piece, before, held)


def _too_long(piece: Piece, before: int, held: bytes, quotes: np.ndarray) -> UserError:
    size = f"{readers.CHUNK_BYTES // 2**20} MiB"
    if len(quotes) % 2 == 0:
        return UserError(
            f"{piece.source.path}:{before + 1}: a row is longer than {size}; write the file as "
            "JSON Lines or Parquet"
        )
    line = _line_of_open(before, held, quotes)
    return UserError(
        f"{piece.source.path}:{line}: the value's quote (\") is not closed within {size}: maybe it "
        f"is never closed; repair the row ({REPAIR}), or write the file as JSON Lines or Parquet"
    )


def _line_of_open(before: int, held: bytes, quotes: np.ndarray) -> int:
    """The line of the quote that opens the last value."""
    last = len(quotes) - 1
    while last and quotes[last - 1] == quotes[last] - 1:  # a doubled one
        last -= 2
    return before + held.count(b"\n", 0, int(quotes[last])) + 1


def _quotes(piece: Piece, before: int, data: bytes) -> np.ndarray:
    """Where values in quotes open and close, in turn. The data begins where a row does."""
    signs = np.frombuffer(data, np.uint8)
    quotes = places(signs, b'"')
    around = np.zeros(256, bool)  # signs that may stand around a value in quotes, or beside ""
    around[[ord(_delimiter(piece.source)), *b'\r\n"']] = True
    opens, closes = quotes[::2], quotes[1::2]
    fit = around[signs[opens - 1]] | (opens == 0)
    if fit.all() and around[signs[closes[closes < len(data) - 1] + 1]].all():
        return quotes
    around[ord('"')] = False
    return _quotes_one_by_one(piece, before, data, quotes.tolist(), around.tolist())


def _quotes_one_by_one(
    piece: Piece, before: int, data: bytes, quotes: list[int], around: list[bool]
) -> np.ndarray:
    found: list[int] = []
    doubled = -1
    for at in quotes:
        if at == doubled:
            continue
        if len(found) % 2 == 0:
            if at == 0 or around[data[at - 1]]:
                found.append(at)
        elif data[at + 1 : at + 2] == b'"':
            doubled = at + 1
        elif at + 1 == len(data) or around[data[at + 1]]:
            found.append(at)
        else:
            line, end = (before + data.count(b"\n", 0, place) + 1 for place in (found[-1], at))
            raise UserError(
                f'{piece.source.path}:{line}: text follows the quote (") that closes a value'
                f"{f' in line {end}' if end != line else ''}: the value's first quote is never "
                f"closed, or one in it is not doubled; repair the row ({REPAIR})"
            )
    return np.array(found, np.int64)


def _last_end(data: bytes, quotes: np.ndarray) -> int:
    """Where the last whole row ends, 0 where none does."""
    stop = len(data)
    while (line_end := data.rfind(b"\n", 0, stop)) >= 0:
        passed = int(np.searchsorted(quotes, line_end))
        if passed % 2 == 0:
            return line_end + 1
        stop = int(quotes[passed - 1])
    return 0


def _refuse_bare_returns(piece: Piece, before: int, data: bytes, quotes: np.ndarray) -> None:
    r"""pyarrow ends a row at a \r alone, wherever it comes from."""
    if b"\r" not in data:
        return
    signs = np.frombuffer(data, np.uint8)
    returns = places(signs, b"\r")
    returns = returns[signs[np.minimum(returns + 1, len(data) - 1)] != ord("\n")]
    returns = returns[np.searchsorted(quotes, returns) % 2 == 0]
    if len(returns):
        line = before + data.count(b"\n", 0, int(returns[0])) + 1
        raise UserError(
            f"{piece.source.path}:{line}: a carriage return (\\r) without a line feed (\\n); save "
            "the file with the line ends of Unix or Windows, or put the value in quotes"
        )
