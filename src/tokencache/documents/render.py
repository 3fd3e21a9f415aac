"""Rows become documents: a text each, and the spans of it that are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..base import limits
from ..base.arrays import as_numpy, as_texts, buffers
from ..errors import UserError
from ..sources import read
from ..sources.source import Piece, line_of_row
from . import rendering, row_hashes
from .conversations import is_empty, of_row
from .recipe import RECIPE_VERSION, Parts, needed_columns
from .spans import Span, Spans

if TYPE_CHECKING:
    from .chat_template import Chat


@dataclass(frozen=True)
class Batch:
    """Documents in row order: texts without nulls, as many as the machine's settings say.

    A row whose columns hold nothing has an empty text, whatever its template puts around them.
    `hashes`: (texts,) uint64 of what the columns hold, the same for every tokenizer and template.
    `spans` are the ranges of characters that are trained on; None where all are (loss: all).
    """

    texts: pa.LargeStringArray
    hashes: np.ndarray
    spans: Spans | None


def render(recipe: dict[str, Any], piece: Piece, shard_key: str) -> Iterator[Batch]:
    """The documents of a piece of a source, one a row, in row order.

    Raises UserError with the file and the row where a row can't become a document,
    where the piece's bytes are not those of `shard_key`, and for a recipe of
    another version of this library.
    """
    if recipe["version"] != RECIPE_VERSION:
        raise UserError(
            f"the plan was made by another version of tokencache (recipe {recipe['version']}, "
            f"here {RECIPE_VERSION}); run snakemake again"
        )
    if recipe["form"] == "messages":
        yield from _conversations(recipe, piece, shard_key)
        return
    for table in read.read_text(piece, needed_columns(recipe), shard_key):
        yield from _texts(recipe, table)


def _texts(recipe: dict[str, Any], table: pa.Table) -> Iterator[Batch]:
    """The documents of a table of text columns, without a Python object a row."""
    plain = recipe["form"] == "text"
    longest = recipe["text"] if plain else recipe.get("prompt_with_input", recipe["prompt"])
    for given in _slices(table, longest if plain else longest + recipe["completion"]):
        columns = {name: _joined(given, [{"column": name}]) for name in needed_columns(recipe)}
        rows = pa.table(columns)
        hashes = row_hashes.of_columns(list(columns.values()))
        sizes = sum(np.diff(buffers(column)[0]) for column in columns.values())
        if plain:
            yield Batch(_kept(_joined(rows, recipe["text"]), sizes > 0), hashes, None)
            continue
        prompts = _joined(rows, recipe["prompt"])
        if "input" in recipe:
            more = pc.not_equal(_joined(rows, recipe["input"]), "")
            prompts = pc.if_else(more, _joined(rows, recipe["prompt_with_input"]), prompts)
        texts = _kept(_join([prompts, _joined(rows, recipe["completion"])]), sizes > 0)
        if recipe["loss"] == "all":
            yield Batch(texts, hashes, None)
            continue
        sides = [as_numpy(pc.utf8_length(side)) for side in (prompts, texts)]
        ranges = np.stack(sides, axis=1).astype(np.int64)
        ranges[:, 1] -= recipe.get("untrained_end", 0)
        some = ranges[:, 0] < ranges[:, 1]
        offsets = np.concatenate([[0], np.cumsum(some)]).astype(np.int64)
        yield Batch(texts, hashes, Spans(ranges[some], offsets))


def _kept(texts: pa.LargeStringArray, some: np.ndarray) -> pa.LargeStringArray:
    """The texts of some rows, and the empty one for the others."""
    if not np.diff(buffers(texts)[0])[~some].any():
        return texts
    return pc.if_else(pa.array(some), texts, pa.scalar("", pa.large_string()))


def _slices(table: pa.Table, parts: Parts) -> Iterator[pa.Table]:
    """Cut a table so that the rendered parts of each slice make a batch."""
    if not table.num_rows:
        return
    size = 0
    for part in parts:
        if isinstance(part, str):
            size += len(part.encode()) * table.num_rows
        else:
            size += table.column(part["column"]).nbytes
    chosen = limits.settings()
    most, rows = chosen.mode.batch_bytes, chosen.rows.amount
    slices = 1 + max(size // most, (table.num_rows - 1) // rows)
    step = -(-table.num_rows // slices)
    for start in range(0, table.num_rows, step):
        yield table.slice(start, step)


def _joined(table: pa.Table, parts: Parts) -> pa.LargeStringArray:
    """One text a row; null is nothing."""
    if len(parts) == 1 and isinstance(parts[0], dict):
        column = table.column(parts[0]["column"])
        if column.num_chunks == 1 and column.type == pa.large_string() and not column.null_count:
            return column.chunk(0)
    values = [
        pa.scalar(part, pa.large_string())
        if isinstance(part, str)
        else table.column(part["column"]).combine_chunks().cast(pa.large_string())
        for part in parts
    ]
    if all(isinstance(part, str) for part in parts):  # scalars alone have no length
        values.append(pa.repeat(pa.scalar("", pa.large_string()), table.num_rows))
    return _join(values)


def _join(values: list[Any]) -> pa.LargeStringArray:
    separator = pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(
        *values, separator, null_handling="replace", null_replacement=""
    )


def chat_of(recipe: dict[str, Any]) -> Chat:
    """What renders the conversations of a recipe."""
    from . import chat_template  # with Jinja, which most data sets don't need

    masked = recipe["loss"] != "all"
    roles, eos = recipe.get("roles_to_train", ["assistant"]), recipe.get("train_on_eos", True)
    about = (recipe["chat_template"], recipe["special_tokens"], masked, roles, eos)
    return chat_template.Chat(*about, recipe.get("tool_template"))


def _conversations(recipe: dict[str, Any], piece: Piece, shard_key: str) -> Iterator[Batch]:
    chosen = limits.settings()
    most, most_rows = chosen.mode.batch_bytes, chosen.rows.amount
    masked = recipe["loss"] != "all"
    template = chat_of(recipe)
    if "rendering" in recipe:
        rendering.check(template, recipe["rendering"])
    names = [name for name in needed_columns(recipe) if name != recipe.get("tools")]
    texts: list[str] = []
    held: list[str] = []
    spans: list[list[Span]] = []

    def batch() -> Batch:
        hashes = row_hashes.of_texts(as_texts(held))
        return Batch(as_texts(texts), hashes, Spans.of(spans) if masked else None)

    row = size = 0
    for rows in read.read_rows(piece, needed_columns(recipe), shard_key):
        for values in rows:
            row += 1
            text, found = "", []
            try:
                if not is_empty(recipe, values):
                    tools = values.get(recipe.get("tools"))
                    messages, first = of_row(recipe, values)
                    text, found = template.document(messages, tools, first)
                    size += _bytes(text)
            except UserError as error:
                raise UserError(f"{_where(piece, row)}: {error}") from None
            texts.append(text)
            # Not the text, which is another one for each model's template.
            held.append(json.dumps([values.get(n) for n in names], sort_keys=True, default=str))
            spans.append(found or [])
            if size >= most or len(texts) >= most_rows:
                yield batch()
                texts, held, spans, size = [], [], [], 0
    if texts:
        yield batch()


def _where(piece: Piece, row: int) -> str:
    """The place of a piece's row, counted from 1."""
    path, kind = piece.source.path, piece.source.format
    if kind == "jsonl":
        return f"{path}:{line_of_row(piece, row)}"
    units = {"parquet": "row group", "arrow": "record batch"}
    return f"{path}: row {row}" + (f" from {units[kind]} {piece.start} on" if piece.start else "")


def _bytes(text: str) -> int:
    """Its size in UTF-8; JSON can say halves of characters (\\ud83d alone) that have none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise UserError(f"half a character, {half} (an unpaired surrogate); fix the row") from None
