"""Which tokens are trained on: spans of characters as runs of tokens.

Which characters a token holds is known from the offsets of the `tokenizers` library, and,
hundreds of times faster, from the bytes that each token stands for, where these laid end
to end are the text. Where they are not (a normalizer changed the text, a special token
took spaces with it), the offsets are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..base.arrays import as_arrow, as_numpy, as_texts
from ..documents.spans import Spans
from ..tokenizer.given import opened
from ..tokenizer.probe import PROBE
from .engines import Differs, Encoded, Engines, HuggingFace, Unfit, buffers, groups, sample_rows
from .token_bytes import Runs, TokenBytes, Unknown

GROUP_BYTES = 4 * 2**20  # of text; what is computed on the way takes some 20 times as much
SAMPLE_CHARACTERS = 16 * 2**10  # of a document that may be in a sample
PROBED_TOKENS = 16


def joined(parts: list[Runs]) -> Runs:
    """All runs of parts of one batch, in the order of the documents."""
    columns = [[p.document for p in parts], [p.start for p in parts], [p.stop for p in parts]]
    made = Runs(*(np.concatenate([np.zeros(0, np.int64), *column]) for column in columns))
    return made[np.argsort(made.document, kind="stable")]


def merged(parts: list[Runs], offsets: np.ndarray) -> Spans:
    """Runs in order and apart from each other, those without a token left out.

    offsets: (documents + 1,) of the documents' tokens, special ones included.
    """
    columns = [[p.document for p in parts], [p.start for p in parts], [p.stop for p in parts]]
    document, start, stop = (np.concatenate(column) for column in columns)
    kept = np.flatnonzero(start < stop)
    kept = kept[np.lexsort((start[kept], document[kept]))]
    document, before = document[kept], offsets[document[kept]]
    start, reach = start[kept] + before, np.maximum.accumulate(stop[kept] + before)
    first = np.ones(len(kept), bool)
    first[1:] = (start[1:] > reach[:-1]) | (document[1:] != document[:-1])
    begin = np.flatnonzero(first)
    end = np.append(begin[1:], len(kept))[: len(begin)] - 1
    ranges = np.stack([start[begin], reach[end]], axis=1) - before[begin, None]
    counts = np.bincount(document[begin], minlength=len(offsets) - 1)
    return Spans(ranges, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


class OtherRuns(Exception):
    """A sample's runs by bytes are not those by offsets; the message says so."""


class Finder:
    """Encodes documents and finds their runs, by bytes where the engine and tokenizer allow.

    `as_transformers`: as `apply_chat_template(return_assistant_tokens_mask=True)` does,
    odd cases included; else a run is all tokens that hold a character of the span. `why`
    says why bytes can't be used, if they can't.
    """

    def __init__(self, folder: Path, engines: Engines, as_transformers: bool) -> None:
        self._engines, self._as_transformers = engines, as_transformers
        self._bytes: TokenBytes | None = None
        self.why = ""
        try:
            self._bytes = TokenBytes(folder, engines.current.vocabulary(), as_transformers)
            self._check(_probe(folder))
        except (Unknown, OtherRuns, Differs, Unfit) as error:
            self._bytes, self.why = None, str(error)

    @property
    def by_bytes(self) -> bool:
        return self._bytes is not None

    def find(self, texts: pa.LargeStringArray, spans: Spans) -> tuple[Encoded, Runs]:
        """Ids and runs of the documents.

        Raises Differs where a sample shows other ids, and OtherRuns where it shows other
        runs; the next call finds them by offsets.
        """
        if self._bytes is None:
            return self._by_offsets(texts, spans)
        found = self._engines.encode(texts)
        rows = sample_rows(texts)
        rows = rows[np.diff(buffers(texts)[0])[rows] <= SAMPLE_CHARACTERS]
        self._compare(texts.take(as_arrow(rows)), _rows(found, rows), spans.take(rows))
        return found, self._runs(texts, found, spans)

    def _runs(self, texts: pa.LargeStringArray, found: Encoded, spans: Spans) -> Runs:
        runs = []
        for start, stop in groups(buffers(texts)[0], GROUP_BYTES):
            rows = np.arange(start, stop)
            mine, part = spans.take(rows), texts.slice(start, stop - start)
            encoded = _rows(found, rows)
            fit, made = self._bytes.runs(part, encoded, mine)
            runs.append(Runs(made.document + start, made.start, made.stop))
            odd = np.flatnonzero(~fit & (np.diff(mine.offsets) > 0))
            if len(odd):
                others = self._checked_offsets(part, encoded, mine, odd)
                runs.append(Runs(odd[others.document] + start, others.start, others.stop))
        return joined(runs)

    def _checked_offsets(
        self, texts: pa.LargeStringArray, found: Encoded, spans: Spans, rows: np.ndarray
    ) -> Runs:
        """The runs of some rows by offsets, whose ids must be those that were found."""
        wanted, runs = self._by_offsets(texts.take(as_arrow(rows)), spans.take(rows))
        mine = _rows(found, rows)
        if not np.array_equal(mine.ids, wanted.ids):
            raise Differs("it gives other ids than tokenizers")
        if not np.array_equal(mine.offsets, wanted.offsets):
            raise Differs("it gives other ids than tokenizers")
        return runs

    def _by_offsets(self, texts: pa.LargeStringArray, spans: Spans) -> tuple[Encoded, Runs]:
        return by_offsets(self._engines.reference, texts, spans, self._as_transformers)

    def _check(self, texts: pa.LargeStringArray) -> None:
        """Compare the two ways on every character of some texts."""
        sizes = as_numpy(pc.utf8_length(texts)).astype(np.int64)
        starts = np.concatenate([np.arange(size) for size in sizes])
        ends = np.concatenate([[0], np.cumsum(sizes)])
        spans = Spans(np.stack([starts, starts + 1], axis=1), ends)
        if self._as_transformers:  # a start that no token holds would end the search
            each = np.repeat(np.arange(len(texts)), sizes)
            texts = texts.take(as_arrow(each))
            spans = Spans(spans.ranges, np.arange(len(each) + 1))
        self._compare(texts, self._engines.current.encode(texts), spans)

    def _compare(self, texts: pa.LargeStringArray, found: Encoded, spans: Spans) -> None:
        fit, runs = self._bytes.runs(texts, found, spans)
        wanted = self._checked_offsets(texts, found, spans, np.arange(len(texts)))
        wanted = wanted[fit[wanted.document]]
        same = (
            np.array_equal(runs.document, wanted.document)
            and np.array_equal(runs.start, wanted.start)
            and np.array_equal(runs.stop, wanted.stop)
        )
        if not same:
            self._bytes, self.why = None, "bytes don't tell which characters its tokens hold"
            raise OtherRuns(self.why)


def _probe(folder: Path) -> pa.LargeStringArray:
    added = sorted(opened(folder).get_added_tokens_decoder().items())[:PROBED_TOKENS]
    return as_texts([*PROBE, *(f"a {t.content} b{t.content}\n {t.content}" for _, t in added)])


def _rows(encoded: Encoded, rows: np.ndarray) -> Encoded:
    """The ids of some rows, each or in one stretch."""
    starts, stops = encoded.offsets[rows], encoded.offsets[rows + 1]
    lengths = stops - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if len(rows) and offsets[-1] == stops[-1] - starts[0]:
        return Encoded(encoded.ids[starts[0] : stops[-1]], offsets)
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return Encoded(encoded.ids[places], offsets)


# By offsets


def by_offsets(
    reference: HuggingFace, texts: pa.LargeStringArray, spans: Spans, as_transformers: bool
) -> tuple[Encoded, Runs]:
    """Ids and runs of documents, from the offsets that the `tokenizers` library tells."""
    find = _as_transformers if as_transformers else _held
    ids, lengths, found = [np.zeros(0, np.uint32)], [0], []
    encodings = reference.encodings(texts, trimmed=as_transformers)
    for number, (encoding, wanted) in enumerate(zip(encodings, spans.lists(), strict=True)):
        ids.append(np.array(encoding.ids, np.uint32))
        lengths.append(len(ids[-1]))
        found += [(number, *run) for run in find(encoding, wanted)]
    runs = np.array(found, np.int64).reshape(-1, 3)
    offsets = np.cumsum(np.array(lengths, np.int64))
    return Encoded(np.concatenate(ids), offsets), Runs(*runs.T)


def _as_transformers(encoding: Any, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
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


def _held(encoding: Any, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
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
