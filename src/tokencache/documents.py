"""Rows become documents: a text each, and the spans of it that are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import machine, rendering, row_hashes, sources
from .conversations import is_empty, of_row, role_of
from .errors import UserError
from .readers import as_numpy, as_texts, buffers
from .sources import Piece
from .spans import Span, Spans

if TYPE_CHECKING:
    from .chat import Chat
    from .dataset_config import Dataset, Document

# Raise when a row of the same recipe gives another text or other spans than before:
# the version is part of every recipe's key, so what is cached is then made anew.
RECIPE_VERSION = 2

SIDES = ("source", "target")

# As in Stanford's Alpaca, with and without an input.
_ALPACA = {
    "prompt_with_input": "Below is an instruction that describes a task, paired with an input that "
    "provides further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "prompt": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n",
}

# A template's parts in order: text as it is, or {"column": its name in the files}.
Parts = list[str | dict[str, str]]


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


def sides(dataset: Dataset) -> tuple[str | None, ...]:
    """What of each row is a document: its source and its target, or (None) all of it."""
    return SIDES if dataset.document.is_pair else (None,)


def recipe(
    dataset: Dataset,
    chat_template: str | None,
    special_tokens: dict[str, str],
    side: str | None = None,
    tool_template: str | None = None,
) -> dict[str, Any]:
    """All that decides the documents of a row, and nothing else, as plain JSON.

    `chat_template` is the Jinja source that is in force (a data set's own included),
    `tool_template` the one for rows with tools, if that is another, `special_tokens` the
    tokenizer's special_tokens_map (bos_token, eos_token, …).
    `side` is one of `sides`. Equal recipes make equal documents, whatever words the config
    says them in.
    Raises UserError that names the key, from `document.` on.
    """
    document, rename = dataset.document, dataset.columns
    made: dict[str, Any] = {"version": RECIPE_VERSION, "loss": dataset.loss}
    made["add_special_tokens"] = not document.is_chat  # chat templates write their own
    if not dataset.train_on_eos:
        made["train_on_eos"] = False
    if document.is_chat:
        made |= {"form": "messages", **_conversation_columns(document, rename)}
        try:
            return made | _chat_parts(dataset, chat_template, tool_template, special_tokens)
        except UserError as error:
            key = "messages" if document.messages else "style"
            raise UserError(f"document.{key}: {error}") from None
    names = (side,) if side else ("text", "prompt", "completion", "instruction", "input", "output")
    parts = {
        key: _parts(value, f"document.{key}", rename, special_tokens)
        for key in names
        if (value := getattr(document, key)) is not None
    }
    if document.instruction is not None:
        parts = _alpaca(parts)
    end = special_tokens.get("eos_token")
    last = parts["completion"][-1:] if not dataset.train_on_eos else []
    if end and last and isinstance(last[0], str) and last[0].endswith(end):
        made["untrained_end"] = len(end)
    if "input" in parts:  # which of two prompts it is differs by row
        return made | {"form": "alpaca", **parts}
    if dataset.loss == "completion":
        made |= {"form": "prompt_completion", **parts}
    else:  # where all is trained on, it makes no difference where the prompt ends
        made |= {"form": "text", "text": _merged([p for found in parts.values() for p in found])}
    if not needed_columns(made):
        keys = " and ".join(f"document.{key}" for key in parts)
        raise UserError(f"{keys}: no column is named; write one as {{column}}")
    return made


def _alpaca(parts: dict[str, Parts]) -> dict[str, Parts]:
    """Instruction and output as prompt and completion; of rows with an input, another prompt."""
    made = {"completion": parts["output"]}
    for key, template in _ALPACA.items():
        if key == "prompt" or "input" in parts:
            made[key] = []
            for literal, name, _, _ in Formatter().parse(template):
                made[key] += [literal, *(parts[name] if name else [])]
            made[key] = _merged(made[key])
    return made | ({"input": parts["input"]} if "input" in parts else {})


def _conversation_columns(document: Document, rename: dict[str, str]) -> dict[str, Any]:
    """Which columns of a row its conversation is made of."""
    made: dict[str, Any] = {}
    if document.messages is not None:
        columns = [rename.get(name, name) for name in document.messages]
        made["messages"] = columns[0] if len(columns) == 1 else columns
    for key in ("instruction", "input", "output", "system"):
        if (name := getattr(document, key)) is not None:
            if "{" in name:
                raise UserError(f"document.{key}: of a conversation it is a column, no template")
            made[key] = rename.get(name, name)
    return made


def _chat_parts(
    dataset: Dataset,
    template: str | None,
    tool_template: str | None,
    special_tokens: dict[str, str],
) -> dict[str, Any]:
    if template is None:
        raise UserError(
            "the tokenizer brings no chat template; give the model one: models.NAME.chat_template "
            "(Jinja text or a file), or make a text with document.text"
        )
    from . import templates  # with Jinja, which most data sets don't need

    made: dict[str, Any] = {"chat_template": templates.uncommented(template)}
    found = [templates.inspect(template)]
    tools = dataset.document.tools
    if tools is not None and tool_template is not None:
        made["tool_template"] = templates.uncommented(tool_template)
        found.append(templates.inspect(tool_template))
    if dataset.loss != "all" and any(about.hidden for about in found):
        raise UserError(
            "the chat template has {% generation %} in a macro, where transformers finds wrong "
            "places; move it out of the macro (models.NAME.chat_template), or take loss: all"
        )
    names = frozenset().union(*(about.variables for about in found))
    used = {k: v for k, v in special_tokens.items() if k in names and v is not None}
    made["special_tokens"] = used
    roles = sorted({role_of(name) for name in dataset.roles_to_train})
    if roles != ["assistant"]:
        made["roles_to_train"] = roles
    if tools is not None and ("tools" in names or "tool_template" in made):
        made["tools"] = dataset.columns.get(tools, tools)
    return made


def _parts(value: str, key: str, rename: dict[str, str], special_tokens: dict[str, str]) -> Parts:
    """Read a column's name or a template with {column} in it."""
    if not value:
        raise UserError(f"{key}: is empty; name a column")
    if "{" not in value and "}" not in value:
        return [{"column": rename.get(value, value)}]
    parts: Parts = []
    try:
        parsed = list(Formatter().parse(value))
    except ValueError as error:
        raise UserError(f"{key}: {error} in {value!r}; write {{{{ and }}}} for braces") from None
    for literal, name, spec, conversion in parsed:
        parts.append(literal)
        if name is None:
            continue
        if not name or spec or conversion or any(sign in name for sign in ".[]{}"):
            said = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UserError(
                f"{key}: {{{said}}} is more than a column's name; write {{column}} (a column with "
                "such signs in its name gets another one under `columns:`) and {{ }} for braces"
            )
        if name in ("bos_token", "eos_token"):
            parts.append(_special(name, key, special_tokens))
        else:
            parts.append({"column": rename.get(name, name)})
    return _merged(parts)


def _special(name: str, key: str, special_tokens: dict[str, str]) -> str:
    token = special_tokens.get(name)
    if token is None:
        raise UserError(f"{key}: {{{name}}}: the tokenizer has no {name}; take it out")
    return token


def _merged(parts: Parts) -> Parts:
    """The same parts with neighbouring texts in one and none of them empty."""
    merged: Parts = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part:
            merged.append(part)
    return merged


def needed_columns(recipe: dict[str, Any]) -> list[str]:
    """The columns of the files that a recipe reads, each once."""
    if recipe["form"] == "messages":
        keys = ("messages", "instruction", "input", "output", "system", "tools")
        found = [recipe[key] for key in keys if key in recipe]
        names = [name for one in found for name in ([one] if isinstance(one, str) else one)]
    else:
        keys = ("text", "prompt", "prompt_with_input", "input", "completion")
        sides = [recipe.get(key, []) for key in keys]
        names = [p["column"] for side in sides for p in side if isinstance(p, dict)]
    return list(dict.fromkeys(names))


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
    for table in sources.read_text(piece, needed_columns(recipe), shard_key):
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
    chosen = machine.settings()
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
    from . import chat  # with Jinja, which most data sets don't need

    masked = recipe["loss"] != "all"
    roles, eos = recipe.get("roles_to_train", ["assistant"]), recipe.get("train_on_eos", True)
    about = (recipe["chat_template"], recipe["special_tokens"], masked, roles, eos)
    return chat.Chat(*about, recipe.get("tool_template"))


def _conversations(recipe: dict[str, Any], piece: Piece, shard_key: str) -> Iterator[Batch]:
    chosen = machine.settings()
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
    for rows in sources.read_rows(piece, needed_columns(recipe), shard_key):
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
        return f"{path}:{sources.line_of_row(piece, row)}"
    units = {"parquet": "row group", "arrow": "record batch"}
    return f"{path}: row {row}" + (f" from {units[kind]} {piece.start} on" if piece.start else "")


def _bytes(text: str) -> int:
    """Its size in UTF-8; JSON can say halves of characters (\\ud83d alone) that have none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise UserError(f"half a character, {half}, which is no text; mend the row") from None
