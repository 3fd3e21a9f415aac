"""Documents to token shards: whole documents, no max_length, one a row of an Arrow file.

A shard's bytes are a function of its documents and the tokenizer alone: neither the
engine nor the size of the batches that documents come in shows in them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..base import limits
from ..base.arrays import as_arrow, as_numpy
from ..base.arrow_io import Writer, ahead
from ..base.json_files import write_json
from ..base.manifest import beside
from ..base.progress import Progress
from ..base.publish import published
from ..documents import render
from ..documents.spans import Spans
from ..errors import UserError
from ..sources.source import Piece
from ..tokenizer.given import Facts, facts
from .engines import SLICE_BYTES, Differs, Encoded, Engines, buffers, groups
from .loss_mask import Finder, OtherRuns, merged
from .read import schema_of
from .token_bytes import Runs

# A record batch ends with the document that brings its tokens, plus one for each
# document, to this number; so whoever reads a shard needs some 16 MB at a time.
TOKENS_IN_A_BATCH = 2**22

END = None  # of a shard's documents

Work = tuple[Piece, str, dict[str, Any], Path, str]


@dataclass(frozen=True)
class Rows:
    """Documents as tokens, special tokens included; an empty document has none of these either.

    ids: (tokens,) uint16 or int32; offsets: (documents + 1,) int64 into ids; hashes: (documents,)
    uint64 of the rows they are made of; spans: places of tokens in each document that are trained
    on, apart from each other; None for all.
    """

    ids: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    spans: Spans | None

    def slice(self, start: int, stop: int) -> Rows:
        offsets = self.offsets[start : stop + 1]
        ids = self.ids[offsets[0] : offsets[-1]]
        spans = self.spans and self.spans.take(np.arange(start, stop))
        return Rows(ids, offsets - offsets[0], self.hashes[start:stop], spans)


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
    missing = [number for number, entry in enumerate(work) if not entry[3].exists()]
    before = sum(sizes) - sum(sizes[number] for number in missing)
    with Progress(sum(sizes), "bytes", label, before=before) as progress:
        tools, said = None, ""
        while missing:
            # Documents of the next shard are read while the last ones of this are encoded, and
            # those of the first while the engines are loaded.
            found = _rendered([work[number] for number in missing])
            with ahead(found, limits.settings().mode.ahead) as stream:
                tools = tools or _Tools(tokenizer_folder, engine)
                try:
                    while missing:
                        number = missing[0]
                        shard = _Shard(work[number], sizes[number], about, tools, progress)
                        said = _say(label, shard.choice(), said)
                        shard.make(iter(partial(next, stream), END))
                        del missing[0]
                except OtherRuns:
                    pass  # the finder goes by offsets now
                except Differs as error:
                    tools.engines.give_up(str(error))


def _rendered(work: list[Work]) -> Iterator[render.Batch | None]:
    """The documents of some pieces, with END after each piece's."""
    for piece, digest, recipe, *_ in work:
        yield from render.render(recipe, piece, digest)
        yield END


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


class _Tools:
    """What all shards of a job are made with."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.engines = Engines(folder, engine)
        self._folder = folder
        self._finders: dict[bool, Finder] = {}

    def finder(self, recipe: dict[str, Any]) -> Finder:
        """Of token runs, for the spans of a recipe."""
        as_transformers = False
        if recipe["form"] == "messages" and recipe["loss"] == "assistant":
            from ..documents import templates  # with Jinja, which most data sets don't need

            # Templates with {% generation %} have a mask in transformers, odd cases included,
            # of what the assistant says, whole. It has none of completions.
            whole = recipe.keys().isdisjoint(("roles_to_train", "train_on_eos"))
            sources = [recipe[k] for k in ("chat_template", "tool_template") if k in recipe]
            as_transformers = whole and all(templates.inspect(s).generation for s in sources)
        if as_transformers not in self._finders:
            made = Finder(self._folder, self.engines, as_transformers)
            self._finders[as_transformers] = made
        return self._finders[as_transformers]


class _Shard:
    """One token shard in the making."""

    def __init__(
        self, work: Work, size: int, about: Facts, tools: _Tools, progress: Progress
    ) -> None:
        self.piece, self.digest, self.recipe, self.out, self.key = work
        self.size, self.tools, self.progress = size, tools, progress
        specials = self.recipe["add_special_tokens"]
        self.prefix = about.prefix if specials else []
        self.suffix = about.suffix if specials else []
        self.vocab_size = about.vocab_size
        self.dtype = np.dtype(np.uint16 if about.vocab_size <= 2**16 else np.int32)
        self.masked = self.recipe["loss"] != "all"
        self.counted = 0  # bytes of `size` that progress has been told of

    def choice(self) -> str:
        """Which engine is used, and why."""
        if self.masked and self.tools.finder(self.recipe).why:
            return f"engine tokenizers ({self.tools.finder(self.recipe).why})"
        return f"engine {self.tools.engines.current.name} ({self.tools.engines.why})"

    def make(self, batches: Iterator[render.Batch]) -> None:
        """Publish the shard and what is said of it. Raises Differs where the engine does."""
        schema = schema_of(self.dtype, self.masked)
        count = tokens = 0
        with published(self.out, keyed=True) as temporary:
            with Writer(temporary, schema) as writer, closing(self._rows(batches)) as found:
                for rows in _regrouped(found):
                    writer.write(_record_batch(rows, schema))
                    count += len(rows.offsets) - 1
                    tokens += len(rows.ids)
            made = {
                "key": self.key,
                "documents": count,
                "tokens": tokens,
                "bytes": temporary.stat().st_size,
                "checksum": writer.checksum(),
                "engine": self._engine(),
            }
            write_json(beside(self.out), made)
        self.progress.update(self.size - self.counted)
        self.counted = self.size

    def _engine(self) -> str:
        if self.masked and not self.tools.finder(self.recipe).by_bytes:
            return self.tools.engines.reference.name
        return self.tools.engines.current.name

    def _rows(self, batches: Iterator[render.Batch]) -> Iterator[Rows]:
        for batch in chain.from_iterable(map(self._steps, batches)):
            rows = self._encoded(batch)
            yield rows
            told = min(int(buffers(batch.texts)[0][-1]), self.size - self.counted)
            self.counted += told
            self.progress.update(told, documents=len(batch.texts), tokens=len(rows.ids))

    def _steps(self, batch: render.Batch) -> Iterator[render.Batch]:
        """The texts of a batch: those for the slow engine in parts, as it takes them anyway, so
        that one sees it get on."""
        if self.tools.engines.current is not self.tools.engines.reference:
            yield batch
            return
        for start, stop in groups(buffers(batch.texts)[0], SLICE_BYTES):
            spans = batch.spans and batch.spans.take(np.arange(start, stop))
            texts = batch.texts.slice(start, stop - start)
            yield render.Batch(texts, batch.hashes[start:stop], spans)

    def _encoded(self, batch: render.Batch) -> Rows:
        if not self.masked:
            ids, offsets = self._wrapped(self.tools.engines.encode(batch.texts))
            return Rows(ids, offsets, batch.hashes, None)
        encoded, runs = self.tools.finder(self.recipe).find(batch.texts, batch.spans)
        ids, offsets = self._wrapped(encoded)
        spans = self._settled(batch.texts, batch.spans, runs, offsets)
        return Rows(ids, offsets, batch.hashes, spans)

    def _wrapped(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Ids with the special tokens around each document that is not empty, and their offsets."""
        if len(encoded.ids) and int(encoded.ids.max()) >= self.vocab_size:
            raise UserError(
                f"the tokenizer gives id {int(encoded.ids.max())}, beyond its vocabulary of "
                f"{self.vocab_size}; mend its files"
            )
        ids = encoded.ids.astype(self.dtype)
        around = len(self.prefix) + len(self.suffix)
        if not around:
            return ids, encoded.offsets
        some = np.diff(encoded.offsets) > 0
        offsets = encoded.offsets + np.concatenate([[0], np.cumsum(some)]) * around
        starts, ends = offsets[:-1][some], offsets[1:][some]
        whole = np.empty(offsets[-1], self.dtype)
        content = np.ones(len(whole), bool)
        for number, special in enumerate(self.prefix):
            whole[starts + number] = special
            content[starts + number] = False
        for number, special in enumerate(reversed(self.suffix), start=1):
            whole[ends - number] = special
            content[ends - number] = False
        whole[content] = ids
        return whole, offsets

    def _settled(
        self, texts: pa.LargeStringArray, spans: Spans, runs: Runs, offsets: np.ndarray
    ) -> Spans:
        """Runs as places in the rows; special tokens go with the text that they touch."""
        before, after = len(self.prefix), len(self.suffix)
        parts = [Runs(runs.document, runs.start + before, runs.stop + before)]
        # A text can be empty for a tokenizer that drops all of its characters.
        some = np.flatnonzero((np.diff(spans.offsets) > 0) & (np.diff(offsets) > 0))
        if before:
            mine = some[spans.ranges[spans.offsets[some], 0] == 0]
            parts.append(Runs(mine, mine * 0, mine * 0 + before))
        if after and self.recipe.get("train_on_eos", True):
            sizes = as_numpy(pc.utf8_length(texts))
            mine = some[spans.ranges[spans.offsets[some + 1] - 1, 1] == sizes[some]]
            ends = np.diff(offsets)[mine]
            parts.append(Runs(mine, ends - after, ends))
        return merged(parts, offsets)


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
    hashes = np.concatenate([part.hashes for part in parts])
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    spans = None
    if parts[0].spans is not None:
        counts = np.concatenate([np.diff(part.spans.offsets) for part in parts])
        ranges = np.concatenate([part.spans.ranges for part in parts])
        spans = Spans(ranges, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Rows(np.concatenate([part.ids for part in parts]), offsets, hashes, spans)


def _record_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    columns = [_lists(rows.offsets, rows.ids), as_arrow(rows.hashes)]
    if rows.spans is not None:
        columns.append(_lists(rows.spans.offsets * 2, rows.spans.ranges.ravel().astype(np.int32)))
    return pa.record_batch(columns, schema=schema)


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(as_arrow(offsets), as_arrow(values))
