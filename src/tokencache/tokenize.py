"""Documents to token shards: whole documents, no max_length, one a row of an Arrow file.

A shard's bytes are a function of its documents and the tokenizer alone: neither the
engine nor the size of the batches that documents come in shows in them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import chat, documents
from .engines import Differs, Encoded, Engines
from .errors import UserError
from .files import hash_file, published, write_json
from .progress import Progress
from .sources import Piece
from .tokenizers import Facts, facts

# A record batch ends with the document that brings its tokens, plus one for each
# document, to this number; so whoever reads a shard needs some 16 MB at a time.
TOKENS_IN_A_BATCH = 2**22

Work = tuple[Piece, str, dict[str, Any], Path, str]


@dataclass(frozen=True)
class Rows:
    """Documents as tokens, special tokens included.

    ids: (tokens,) uint16 or int32; offsets: (documents + 1,) int64 into ids; spans: one
    list a document, token places [start, stop, …] in it that are trained on; None for all.
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: list[list[int]] | None

    def slice(self, start: int, stop: int) -> Rows:
        offsets = self.offsets[start : stop + 1]
        ids = self.ids[offsets[0] : offsets[-1]]
        return Rows(ids, offsets - offsets[0], self.spans and self.spans[start:stop])


def tokenize_batch(
    work: list[Work], tokenizer_folder: Path, label: str, engine: str = "auto"
) -> None:
    """Make the token shards of some pieces; those that are there already are left alone.

    work: (piece, its digest, recipe, the shard's path, its key) each. Beside each shard,
    and before it, a file of its key in JSON is published: {key, documents, tokens, bytes,
    checksum, engine}. Raises UserError where a piece can't be read or is another one than
    its digest says, and where the engine that was asked for can't be used.
    """
    about = facts(tokenizer_folder)
    sizes = [_size(piece) for piece, *_ in work]
    engines, said = None, ""
    with Progress(sum(sizes), "bytes", label) as progress:
        for entry, size in zip(work, sizes, strict=True):
            if entry[3].exists():
                progress.update(size)
                continue
            engines = engines or Engines(tokenizer_folder, engine)
            shard = _Shard(entry, size, about, engines, progress)
            said = _say(label, shard.choice(), said)
            try:
                shard.make()
            except Differs as error:
                engines.give_up(str(error))
                said = _say(label, shard.choice(), said)
                shard.make()


def _say(label: str, line: str, said: str) -> str:
    """Print a line, unless it was the last one said."""
    if line != said:
        print(f"{label}: {line}", file=sys.stderr, flush=True)
    return line


def _size(piece: Piece) -> int:
    """About how many bytes of its file a piece is."""
    file = os.stat(piece.source.path).st_size if os.path.exists(piece.source.path) else 0
    in_bytes = piece.source.format not in ("parquet", "arrow")
    return min(file, piece.stop - piece.start) if in_bytes else file


class _Shard:
    """One token shard in the making."""

    def __init__(
        self, work: Work, size: int, about: Facts, engines: Engines, progress: Progress
    ) -> None:
        self.piece, self.digest, self.recipe, self.out, self.key = work
        self.size, self.engines, self.progress = size, engines, progress
        specials = self.recipe["add_special_tokens"]
        self.prefix = about.prefix if specials else []
        self.suffix = about.suffix if specials else []
        self.vocab_size = about.vocab_size
        self.dtype = np.dtype(np.uint16 if about.vocab_size <= 2**16 else np.int32)
        self.masked = self.recipe["loss"] != "all"
        self.counted = 0  # bytes of `size` that progress has been told of

    def choice(self) -> str:
        """Which engine is used, and why."""
        if self.masked and self.engines.current is not self.engines.reference:
            return "engine tokenizers (the loss mask needs to know each token's characters)"
        return f"engine {self.engines.current.name} ({self.engines.why})"

    def make(self) -> None:
        """Publish the shard and what is said of it. Raises Differs where the engine does."""
        columns = {"input_ids": pa.large_list(pa.from_numpy_dtype(self.dtype))}
        if self.masked:
            columns["loss_spans"] = pa.large_list(pa.int32())
        schema = pa.schema(columns)
        count = tokens = 0
        with published(self.out) as temporary:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for rows in _regrouped(self._rows()):
                    writer.write_batch(_record_batch(rows, schema))
                    count += len(rows.offsets) - 1
                    tokens += len(rows.ids)
            made = {
                "key": self.key,
                "documents": count,
                "tokens": tokens,
                "bytes": temporary.stat().st_size,
                "checksum": hash_file(temporary),
                "engine": self._engine().name,
            }
            write_json(self.out.with_suffix(".json"), made)
        self.progress.update(self.size - self.counted)
        self.counted = self.size

    def _engine(self) -> Any:
        return self.engines.reference if self.masked else self.engines.current

    def _rows(self) -> Iterator[Rows]:
        for batch in documents.render(self.recipe, self.piece, self.digest):
            texts = batch.texts
            if self.masked:
                yield self._masked(texts, batch.spans)
            else:
                ids, offsets = self._wrapped(self.engines.encode(texts))
                yield Rows(ids, offsets, None)
            told = min(pc.sum(pc.binary_length(texts)).as_py() or 0, self.size - self.counted)
            self.counted += told
            self.progress.update(told, documents=len(texts))

    def _wrapped(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Ids with the special tokens around each document, and their offsets."""
        if len(encoded.ids) and int(encoded.ids.max()) >= self.vocab_size:
            raise UserError(
                f"the tokenizer gives id {int(encoded.ids.max())}, beyond its vocabulary of "
                f"{self.vocab_size}; mend its files"
            )
        ids = encoded.ids.astype(self.dtype)
        around = len(self.prefix) + len(self.suffix)
        if not around:
            return ids, encoded.offsets
        offsets = encoded.offsets + np.arange(len(encoded.offsets)) * around
        whole = np.empty(offsets[-1], self.dtype)
        content = np.ones(len(whole), bool)
        for number, special in enumerate(self.prefix):
            whole[offsets[:-1] + number] = special
            content[offsets[:-1] + number] = False
        for number, special in enumerate(reversed(self.suffix), start=1):
            whole[offsets[1:] - number] = special
            content[offsets[1:] - number] = False
        whole[content] = ids
        return whole, offsets

    def _masked(self, texts: pa.LargeStringArray, spans: list[list[chat.Span]]) -> Rows:
        # Templates with {% generation %} have a mask in transformers, odd cases included.
        as_transformers = self.recipe["form"] == "messages" and (
            chat.inspect(self.recipe["chat_template"]).generation
        )
        ids, lengths, found = [np.zeros(0, np.uint32)], [0], []
        sizes = pc.utf8_length(texts).to_pylist()
        find = _as_transformers if as_transformers else _held
        encodings = self.engines.reference.encodings(texts, trimmed=as_transformers)
        for encoding, wanted, size in zip(encodings, spans, sizes, strict=True):
            row = np.array(encoding.ids, np.uint32)
            ids.append(row)
            lengths.append(len(row))
            runs = find(encoding, wanted)
            found.append(self._around(runs, wanted, size, len(row)))
        whole, offsets = self._wrapped(
            Encoded(np.concatenate(ids), np.cumsum(np.array(lengths, np.int64)))
        )
        return Rows(whole, offsets, found)

    def _around(
        self, runs: list[tuple[int, int]], spans: list[chat.Span], size: int, content: int
    ) -> list[int]:
        """Token runs as places in the row; special tokens go with the text that they touch."""
        before, after = len(self.prefix), len(self.suffix)
        runs = [(start + before, stop + before) for start, stop in runs]
        if before and spans and spans[0][0] == 0:
            runs.insert(0, (0, before))
        if after and spans and spans[-1][1] == size:
            runs.append((before + content, before + content + after))
        return _merged(runs)


def _as_transformers(encoding: Any, spans: list[chat.Span]) -> list[tuple[int, int]]:
    """Token runs of the spans as `apply_chat_template(return_assistant_tokens_mask=True)`.

    A start that no token holds ends the search; an end that none holds, or the first
    one, means the end of the text; of a character in many tokens the first one counts.
    """
    runs = []
    for start, stop in spans:
        first = encoding.char_to_token(start)
        last = encoding.char_to_token(stop - 1)
        if first is None:
            break
        runs.append((first, last + 1 if last else len(encoding.ids)))
    return runs


def _held(encoding: Any, spans: list[chat.Span]) -> list[tuple[int, int]]:
    """Token runs from the first to the last token that holds a character of each span."""
    if not spans:
        return []
    places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    runs = []
    for start, stop in spans:
        inside = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < stop))
        if len(inside):
            runs.append((int(inside[0]), int(inside[-1]) + 1))
    return runs


def _merged(runs: list[tuple[int, int]]) -> list[int]:
    """Runs in order and apart from each other, as one flat list."""
    flat: list[int] = []
    for start, stop in sorted(run for run in runs if run[0] < run[1]):
        if flat and start <= flat[-1]:
            flat[-1] = max(flat[-1], stop)
        else:
            flat += [start, stop]
    return flat


def _regrouped(stream: Iterator[Rows]) -> Iterator[Rows]:
    """The same documents in groups that their numbers of tokens alone decide."""
    waiting: list[Rows] = []
    weight = 0
    for rows in stream:
        start, count = 0, len(rows.offsets) - 1
        weights = rows.offsets + np.arange(count + 1)
        while start < count:
            aim = weights[start] + TOKENS_IN_A_BATCH - weight
            stop = int(np.searchsorted(weights, aim, side="left"))
            waiting.append(rows.slice(start, min(stop, count)))
            if stop > count:
                weight += int(weights[-1] - weights[start])
                break
            yield _joined(waiting)
            waiting, weight, start = [], 0, stop
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    spans = None
    if parts[0].spans is not None:
        spans = [row for part in parts for row in part.spans]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Rows(np.concatenate([part.ids for part in parts]), offsets, spans)


def _record_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.LargeListArray.from_arrays(pa.array(rows.offsets), pa.array(rows.ids))]
    if rows.spans is not None:
        columns.append(pa.array(rows.spans, schema.field("loss_spans").type))
    return pa.record_batch(columns, schema=schema)
