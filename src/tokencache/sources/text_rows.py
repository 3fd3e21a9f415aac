"""Rows of plain text: lines, paragraphs or whole files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from .source import LONGEST_ROW, Piece, _one_text, blocks, checked, no_column, rows_in, whole

TEXT = "text"  # the one column of a text file


def text_tables(piece: Piece, columns: list[str], stream: BinaryIO) -> Iterator[pa.Table]:
    r"""Lines without their ends (empty ones too), paragraphs between empty lines, or the file.

    Line ends are \n or \r\n; inside a paragraph or document each becomes \n.
    """
    for name in columns:
        if name != TEXT:
            raise no_column(piece.source.path, name, [TEXT])
    separator = {"line": b"\n", "paragraph": b"\n\n"}.get(piece.source.sample_by)
    found = _unix_lines(blocks(stream))
    if separator is None:
        hint = "set sample_by: line or paragraph, or cut the file into several"
        data = checked(piece, 0, whole(piece, found, LONGEST_ROW, hint))
        if data:
            yield pa.table({TEXT: _one_text(data)})
        return
    for _, chunk in rows_in(piece, found, separator):
        texts = _one_text(chunk.removesuffix(b"\n"))
        values = pc.split_pattern(texts, separator.decode()).flatten()
        if separator == b"\n\n":
            # All newlines around it go, so that it is the same wherever a file is cut.
            values = pc.utf8_trim(values, "\n")
            values = values.filter(pc.not_equal(values, ""))
        if len(values):
            yield pa.table({TEXT: values})


def _unix_lines(found: Iterable[bytes]) -> Iterator[bytes]:
    r"""The same text with each \r\n as \n, the way Python opens text files."""
    held = b""
    for block in found:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        yield block[: len(block) - len(held)].replace(b"\r\n", b"\n")
    if held:
        yield held
