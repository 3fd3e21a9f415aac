"""Engines that encode texts: one interface, the same ids, at very different speeds.

The `tokenizers` library is the reference. Another engine is used for a tokenizer only
after it gave the reference's ids on the probe texts, and for a batch of documents only
after it did so on a sample of that batch.
"""

from __future__ import annotations

import copy
import json
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..base import limits
from ..base.arrays import as_arrow, as_numpy, as_texts, buffers
from ..errors import UserError, panics_explained
from ..tokenizer.given import opened, probe

SPACE_SIGN = "\u2581"  # of SentencePiece, for a space

CANNOT = (
    "the tokenizer can't encode a document; simplify the patterns in its tokenizer.json, or leave "
    "long runs of one character out of the data"
)

NAMES = ("auto", "gigatoken", "tokenizers")

# The `tokenizers` library makes some 100 bytes a token, so it gets this much text at once.
SLICE_BYTES = 2 * 2**20

# Of text, which one thread of gigatoken gets at least.
PART_BYTES = 2**20

# Of each batch this share is encoded by the reference too, within these bounds.
SAMPLE_SHARE = 1 / 1024
SAMPLE_BYTES = (8 * 2**10, 64 * 2**10)
SAMPLE_CHARACTERS = 4 * 2**10  # of one text at most

# All of these were assigned in Unicode 3.2: ideographs, syllables, private use.
SETTLED_BLOCKS = (
    (0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xD800, 0xFA2D),
    (0x20000, 0x2A6D6), (0x2F800, 0x2FA1D),
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Ids of texts, no special tokens around them.

    ids: (tokens,) of any unsigned dtype; offsets: (texts + 1,) int64 into ids.
    """

    ids: np.ndarray
    offsets: np.ndarray


class Engine(Protocol):
    name: str

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Ids of the texts, which have no nulls."""

    def vocabulary(self) -> dict[int, bytes]:
        """The bytes that tokens seem to stand for, ▁ not read as a space; to be checked."""


class Differs(Exception):
    """An engine gave other ids than the reference; the message says where."""


class Unfit(Exception):
    """An engine can't take a tokenizer; the message says why."""


class HuggingFace:
    """The reference; also the one that knows which characters a token stands for."""

    name = "tokenizers"

    def __init__(self, folder: Path) -> None:
        self._backend = opened(folder)
        self._untrimmed: Any = None

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        ids, lengths = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
        for part in _slices(texts):
            with panics_explained(CANNOT):
                found = self._backend.encode_batch_fast(part, add_special_tokens=False)
            rows = [encoding.ids for encoding in found]
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            ids.append(np.fromiter(chain.from_iterable(rows), np.uint32, lengths[-1].sum()))
        return Encoded(np.concatenate(ids), np.cumsum(np.concatenate(lengths)))

    def vocabulary(self) -> dict[int, bytes]:
        added = self._backend.get_added_tokens_decoder()
        known = self._backend.get_vocab(with_added_tokens=False)
        alphabet = str.maketrans(dict(byte_alphabet()))
        if any(SPACE_SIGN in token for token in known):
            found = {n: fallback_bytes(token) for token, n in known.items()}
        else:
            found = {n: token.translate(alphabet).encode("latin-1", "replace")
                     for token, n in known.items()}  # fmt: skip
        return found | {n: token.content.encode() for n, token in added.items()}

    def encodings(self, texts: pa.LargeStringArray, trimmed: bool) -> Iterator[Any]:
        """`tokenizers.Encoding` of each text, with offsets in characters.

        The post-processors of byte-level tokenizers trim spaces off the offsets;
        that is what transformers sees (`trimmed`), but not what a token holds.
        """
        backend = self._backend
        if not trimmed:
            if self._untrimmed is None:
                self._untrimmed = copy.deepcopy(backend)
                self._untrimmed.encode_special_tokens = backend.encode_special_tokens
                self._untrimmed.post_processor = None
            backend = self._untrimmed
        for part in _slices(texts):
            with panics_explained(CANNOT):
                found = backend.encode_batch(part, add_special_tokens=False)
            yield from found


def byte_alphabet() -> Iterator[tuple[str, str]]:
    """The signs that byte-level tokenizers write bytes as, and the bytes as Latin-1."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(plain))
    yield from ((chr(byte), chr(byte)) for byte in plain)
    yield from ((chr(0x100 + number), chr(byte)) for number, byte in enumerate(others))


def fallback_bytes(token: str) -> bytes:
    """The bytes of a token of SentencePiece's kind, where <0x0A> is the byte 10."""
    match = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(match[1]) if match else token.encode()


class Gigatoken:
    """Byte-level and SentencePiece-style BPE, straight from Arrow's buffers into NumPy's.

    Its tables are those of another version of Unicode than the reference's, so texts
    with a character whose kind may differ between versions are left to the reference.
    """

    name = "gigatoken"

    def __init__(self, folder: Path, reference: HuggingFace) -> None:
        self._reference = reference
        try:
            import awkward
            import gigatoken
        except ImportError as error:
            raise Unfit(f"it is not installed ({error})") from None
        self._awkward = awkward
        content = (folder / "tokenizer.json").read_bytes()
        if found := not_honoured(json.loads(content)):
            raise Unfit(found)
        self._tokenizer = _guarded(gigatoken.Tokenizer.from_json, content)
        # SentencePiece's kind begins with empty caches for each MiB, unless it is called in
        # one thread: then once a call.
        backend = self._tokenizer.backend
        self._forgets = isinstance(backend, gigatoken.gigatoken_rs.SentencePieceTokenizer)

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        unsettled = _unsettled(texts)
        if not unsettled.any():
            return self._encode(texts)
        mine = self._encode(texts.take(as_arrow(np.flatnonzero(~unsettled))))
        others = self._reference.encode(texts.take(as_arrow(np.flatnonzero(unsettled))))
        return _mixed(mine, others, unsettled)

    def vocabulary(self) -> dict[int, bytes]:
        return self._tokenizer.vocab

    def _encode(self, texts: pa.LargeStringArray) -> Encoded:
        threads = limits.settings().rayon.amount
        size = int(buffers(texts)[0][-1])
        if not self._forgets or len(texts) < threads or size < threads * PART_BYTES:
            return self._call(texts)
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(partial(self._call, parallel=False), _parts(texts, threads)))
        lengths = [np.zeros(1, np.int64), *(np.diff(part.offsets) for part in found)]
        ids = np.concatenate([part.ids for part in found])
        return Encoded(ids, np.cumsum(np.concatenate(lengths)))

    def _call(self, texts: pa.LargeStringArray, parallel: bool = True) -> Encoded:
        if not len(texts):
            return Encoded(np.zeros(0, np.uint32), np.zeros(1, np.int64))
        call = partial(self._tokenizer.encode_batch, parallel=parallel)
        layout = _guarded(call, self._wrapped(texts)).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return Encoded(ids, offsets.astype(np.int64) - offsets[0])

    def _wrapped(self, texts: pa.LargeStringArray) -> Any:
        """The texts as an awkward array on the same memory."""
        contents, index = self._awkward.contents, self._awkward.index
        offsets, data = buffers(texts)
        characters = contents.NumpyArray(data, parameters={"__array__": "char"})
        return self._awkward.Array(
            contents.ListOffsetArray(
                index.Index64(offsets), characters, parameters={"__array__": "string"}
            )
        )


def not_honoured(content: dict[str, Any]) -> str | None:
    """What gigatoken ignores in a tokenizer.json; a sample of texts may not show it."""
    tokens = content.get("added_tokens") or ()
    for token in tokens:
        if token.get("single_word"):
            return f"it ignores single_word, which the added token {token['content']!r} has"
    stripping = next((t["content"] for t in tokens if t.get("rstrip")), None)
    spaced = next((t["content"] for t in tokens if t["content"][:1].isspace()), None)
    if stripping is not None and spaced is not None:
        return (
            f"the added token {stripping!r} takes the space after it, with which {spaced!r} begins"
        )
    return None


def _parts(texts: pa.LargeStringArray, count: int) -> list[pa.LargeStringArray]:
    """The same texts in so many parts of about the same size."""
    offsets, _ = buffers(texts)
    edges = np.searchsorted(offsets, np.linspace(0, offsets[-1], count + 1)).tolist()
    edges[-1] = len(texts)  # there may be empty ones at the end
    return [texts.slice(start, stop - start) for start, stop in pairwise(edges)]


def _unsettled(texts: pa.LargeStringArray) -> np.ndarray:
    """(texts,) bool: which have a character that `unsettled_characters` means."""
    found = np.zeros(len(texts), bool)
    wide = ~as_numpy(pc.string_is_ascii(texts))
    if wide.any():
        others = texts.take(as_arrow(np.flatnonzero(wide)))
        matches = pc.match_substring_regex(others, unsettled_characters())
        found[wide] = as_numpy(matches)
    return found


def _mixed(first: Encoded, second: Encoded, from_second: np.ndarray) -> Encoded:
    """Rows of both in one: `from_second` (rows,) bool says which are whose."""
    lengths = np.empty(len(from_second), np.int64)
    lengths[~from_second] = np.diff(first.offsets)
    lengths[from_second] = np.diff(second.offsets)
    ids = np.empty(lengths.sum(), np.uint32)
    tokens = np.repeat(from_second, lengths)
    ids[~tokens] = first.ids
    ids[tokens] = second.ids
    return Encoded(ids, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


@lru_cache(maxsize=1)
def unsettled_characters() -> str:
    """A pattern of the characters whose kind is not the same in every version of Unicode.

    Letters, digits, marks and spaces are settled since they were first assigned, in
    Unicode 3.2 at the latest; symbols and punctuation always, for before they were
    assigned they were no letters either. What Python does not know may be anything, and
    so may what lies beyond the first planes, but for private use.
    """
    settled = np.zeros(0x40000, bool)
    for first, last in SETTLED_BLOCKS:
        settled[first : last + 1] = True
    # Beyond them there are no signs, and to ask for each character is what takes time.
    others = np.flatnonzero(~settled[:0x20000])
    kinds = map(_is_settled, map(chr, others.tolist()))
    settled[others] = np.fromiter(kinds, bool, len(others))
    edges = np.flatnonzero(np.diff(settled, prepend=False, append=False)).reshape(-1, 2)
    found = [*(edges - [0, 1]).tolist(), [0xF0000, 0xFFFFD], [0x100000, 0x10FFFD]]
    ranges = "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in found)
    return f"[^{ranges}]"


def _is_settled(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "SP" or unicodedata.ucd_3_2_0.category(character) != "Cn"


class Engines:
    """The engine in use for one tokenizer folder; `why` says why it is that one.

    `wanted` is one of NAMES. Raises UserError for another one, and where the engine
    that was asked for by name can't be used.
    """

    def __init__(self, folder: Path, wanted: str = "auto") -> None:
        if wanted not in NAMES:
            raise UserError(f"engine: {wanted!r} is unknown; there are: {', '.join(NAMES)}")
        self.wanted = wanted
        self.reference = HuggingFace(folder)
        self.current: Engine = self.reference
        self.why = "it was asked for"
        if wanted == "tokenizers":
            return
        try:
            fast = Gigatoken(folder, self.reference)
            _compare(fast, self.reference, as_texts(probe(opened(folder), tokens=None)))
        except (Unfit, Differs) as error:
            self.give_up(str(error))
        else:
            self.current, self.why = fast, "same ids as tokenizers on the probe texts"

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode by the engine in use. Raises Differs where a sample shows other ids."""
        if self.current is not self.reference:
            _compare(self.current, self.reference, _sample(texts))
        try:
            return self.current.encode(texts)
        except Unfit as error:
            raise Differs(str(error)) from None

    def give_up(self, reason: str) -> None:
        """Use the reference from now on. Raises UserError where the other was asked for."""
        if self.wanted == "gigatoken":
            raise UserError(
                f"engine: gigatoken can't be used for this tokenizer: {reason}; take engine: auto"
            )
        self.current, self.why = self.reference, f"gigatoken can't be used: {reason}"


def _compare(engine: Engine, reference: Engine, texts: pa.LargeStringArray) -> None:
    try:
        found = engine.encode(texts)
    except Unfit as error:
        raise Differs(str(error)) from None
    wanted = reference.encode(texts)
    if np.array_equal(found.offsets, wanted.offsets) and np.array_equal(found.ids, wanted.ids):
        return
    for number, text in enumerate(texts.to_pylist()):
        if not np.array_equal(_row(found, number), _row(wanted, number)):
            said = text if len(text) <= 60 else text[:60] + "…"
            raise Differs(f"it gives other ids than tokenizers, for example for {said!r}")
    raise Differs("it gives other ids than tokenizers")


def _row(encoded: Encoded, number: int) -> np.ndarray:
    return encoded.ids[encoded.offsets[number] : encoded.offsets[number + 1]]


def _sample(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Some texts of a batch, the long ones cut short."""
    chosen = texts.take(as_arrow(sample_rows(texts)))
    return pc.utf8_slice_codeunits(chosen, 0, SAMPLE_CHARACTERS)


def sample_rows(texts: pa.LargeStringArray) -> np.ndarray:
    """Numbers of some texts of a batch, evenly spread."""
    offsets, _ = buffers(texts)
    low, high = SAMPLE_BYTES
    size = int(offsets[-1])
    wanted = min(high, max(low, size * SAMPLE_SHARE))
    mean = min(size / max(1, len(texts)), SAMPLE_CHARACTERS)
    count = min(len(texts), 1 + int(wanted / (mean + 1)))
    return np.unique(np.linspace(0, len(texts) - 1, count).astype(np.int64))


def _guarded(call: Any, *values: Any) -> Any:
    """Call Rust: what it panics with is no Exception."""
    try:
        return call(*values)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise Unfit(lines[0]) from None


def _slices(texts: pa.LargeStringArray) -> Iterator[list[str]]:
    """The texts in lists of at most SLICE_BYTES, or of one text."""
    for start, stop in groups(buffers(texts)[0], SLICE_BYTES):
        yield texts.slice(start, stop - start).to_pylist()


def groups(offsets: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that end at `offsets` (rows + 1,): at most `size` in each, or one row."""
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1
        yield start, max(start + 1, stop)
        start = max(start + 1, stop)
