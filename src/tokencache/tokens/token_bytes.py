"""The bytes that tokens stand for, and what tokens hold the characters of a text by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..base.arrays import as_arrow, as_numpy
from ..base.json_files import read_json
from ..documents.spans import Spans
from ..tokenizer.given import TOKENIZER_FILE
from .engines import SPACE_SIGN, Encoded, buffers

# What char::is_whitespace is true of in Rust.
WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
BYTE_SPACE = "\u0120"  # of byte-level alphabets


@dataclass(frozen=True)
class Runs:
    """Runs of tokens of some documents, in the order of their spans: (k,) int64 each.

    document: its number; [start, stop): places among its tokens, special tokens not
    counted; maybe empty or over each other.
    """

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Runs:
        return Runs(self.document[chosen], self.start[chosen], self.stop[chosen])


class Unknown(Exception):
    """It can't be told which bytes a tokenizer's tokens hold; the message says why."""


class TokenBytes:
    """The bytes that each token of a vocabulary stands for."""

    def __init__(self, folder: Path, vocabulary: dict[int, bytes], as_transformers: bool) -> None:
        content = read_json(folder / TOKENIZER_FILE)
        self._spaced = _is_spaced(content)  # a space may be put before the text
        values = [vocabulary.get(number, b"") for number in range(max(vocabulary) + 1)]
        if self._spaced:
            sign = SPACE_SIGN.encode()
            values = [value.replace(sign, b" ") for value in values]
        self._values = _binary(values)
        self._as_transformers, self._trim = as_transformers, None
        if as_transformers and (trimming := _trimming(content["post_processor"])):
            added = {token["id"]: token["content"] for token in content["added_tokens"]}
            self._trim = _edges(values, added, trimming["add_prefix_space"])

    def runs(
        self, texts: pa.LargeStringArray, encoded: Encoded, spans: Spans
    ) -> tuple[np.ndarray, Runs]:
        """(documents,) bool, whose tokens' bytes are the text, and the runs of those."""
        places, data = buffers(texts)
        fit, starts = self._starts(places, data, encoded)
        document = np.repeat(np.arange(len(texts)), np.diff(spans.offsets))
        sizes = as_numpy(pc.utf8_length(texts)).astype(np.int64)
        fit[document[spans.ranges[:, 1] > sizes[document]]] = False
        mine = fit[document]
        document, begin, end = document[mine], *spans.ranges[mine].T
        at = _Places(places, data, sizes)
        first = np.searchsorted(starts, at.bytes(document, begin), "right") - 1
        first = np.where(begin == 0, encoded.offsets[document], first)
        if self._as_transformers:
            keep, stop = self._odd(at, encoded, starts, document, begin, end, first)
            document, first, stop = document[keep], first[keep], stop[keep]
        else:
            stop = np.searchsorted(starts, at.bytes(document, end), "left")
        before = encoded.offsets[document]
        return fit, Runs(document, first - before, stop - before)

    def _starts(
        self, places: np.ndarray, data: np.ndarray, encoded: Encoded
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which documents the tokens' bytes give again, and where in `data` tokens start."""
        taken = self._values.take(as_arrow(np.ascontiguousarray(encoded.ids, np.uint32)))
        bounds = np.frombuffer(taken.buffers()[1], np.int64, len(taken) + 1, taken.offset * 8)
        given = np.frombuffer(taken.buffers()[2] or b"", np.uint8)[bounds[0] : bounds[-1]]
        bounds = bounds - bounds[0]
        ends = bounds[encoded.offsets]
        lengths, wanted = np.diff(ends), np.diff(places)
        space = np.zeros(len(wanted), np.int64)
        if self._spaced:
            space = ((lengths == wanted + 1) & (lengths > 0)).astype(np.int64)
            ahead = np.flatnonzero(space)
            space[ahead] = given[ends[ahead]] == ord(" ")
        fit = lengths == wanted + space
        if fit.all() and not space.any():
            same = np.array_equal(given, data)
        else:
            kept = np.repeat(fit, lengths)
            kept[ends[np.flatnonzero(fit & (space > 0))]] = False
            same = np.array_equal(given[kept], data[np.repeat(fit, wanted)])
        if not same:
            for row in np.flatnonzero(fit):
                mine = given[ends[row] + space[row] : ends[row + 1]]
                fit[row] = np.array_equal(mine, data[places[row] : places[row + 1]])
        tokens = np.diff(encoded.offsets)
        nothing = np.flatnonzero(bounds[1:] == bounds[:-1])  # of a token without bytes
        fit[np.searchsorted(encoded.offsets, nothing, "right") - 1] = False
        shift = np.repeat(places[:-1] - ends[:-1] - space, tokens)
        least = np.repeat(places[:-1], tokens)
        # Those of documents that don't fit are of no use, but must stay in order.
        most = np.repeat(places[1:], tokens)
        return fit, np.clip(bounds[:-1] + shift, least, most)

    def _odd(
        self, at: _Places, encoded: Encoded, starts: np.ndarray, document: np.ndarray,
        begin: np.ndarray, end: np.ndarray, first: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Which spans count, and where they stop; see `_as_transformers`."""
        before, after = encoded.offsets[document], encoded.offsets[document + 1]
        place = at.bytes(document, end - 1)
        last = np.searchsorted(starts, place, "right") - 1
        last = np.where(end == 1, before, last)
        unheld = self._trimmed(at, encoded, starts, document, at.bytes(document, begin), first)
        nowhere = self._trimmed(at, encoded, starts, document, place, last)
        stop = np.where(nowhere | (last == before), after, last + 1)
        ended = np.cumsum(unheld)
        start_of_document = np.searchsorted(document, document, "left")
        earlier = np.concatenate([[0], ended])[start_of_document]
        return ended == earlier, stop

    def _trimmed(
        self, at: _Places, encoded: Encoded, starts: np.ndarray, document: np.ndarray,
        place: np.ndarray, token: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Whether the character at a byte is a space that was trimmed off its token."""
        if self._trim is None:
            return np.zeros(len(token), bool)
        ahead, ahead_first, behind = self._trim
        number = encoded.ids[token]
        is_first = token == encoded.offsets[document]
        left = np.where(is_first, ahead_first[number], ahead[number])
        following = np.minimum(token + 1, len(starts) - 1)
        is_last = token + 1 == encoded.offsets[document + 1]
        end = np.where(is_last, at.places[document + 1], starts[following])
        return (place - starts[token] < left) | (end - place <= behind[number])


class _Places:
    """Characters of documents as places among the bytes of all of them."""

    def __init__(self, places: np.ndarray, data: np.ndarray, sizes: np.ndarray) -> None:
        self.places, self._data = places, data
        self._ascii = sizes == np.diff(places)
        self._before = np.concatenate([[0], np.cumsum(sizes)])
        self._starts: np.ndarray | None = None

    def bytes(self, document: np.ndarray, character: np.ndarray) -> np.ndarray:
        found = self.places[document] + character
        wide = ~self._ascii[document]
        if wide.any():
            if self._starts is None:
                starts = np.flatnonzero((self._data & 0xC0) != 0x80)
                self._starts = np.append(starts, len(self._data))
            found[wide] = self._starts[self._before[document[wide]] + character[wide]]
        return found


def _binary(values: list[bytes]) -> pa.LargeBinaryArray:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=offsets[1:])
    data = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), data)


def _is_spaced(content: dict[str, Any]) -> bool:
    """Whether tokens are of SentencePiece's kind rather than byte-level.

    Raises Unknown where texts may be changed in ways that bytes don't show.
    """
    steps = [*_steps(content["normalizer"]), *_steps(content["pre_tokenizer"])]
    kinds = {step["type"] for step in steps}
    removed = any(step.get("behavior") == "Removed" for step in steps)
    spaced = any(step.get("add_prefix_space") for step in steps)
    if "ByteLevel" in kinds and kinds <= {"NFC", "Split", "Digits", "ByteLevel"}:
        if not removed and not spaced:
            return False
    elif kinds <= {"Prepend", "Replace", "Metaspace"}:
        signs = {step.get("prepend", SPACE_SIGN) for step in steps}
        signs |= {step.get("replacement", SPACE_SIGN) for step in steps}
        swaps = [s for s in steps if s["type"] == "Replace"]
        if signs == {SPACE_SIGN} and all(
            (s["pattern"], s["content"]) == ({"String": " "}, SPACE_SIGN) for s in swaps
        ):
            return True
    raise Unknown("the loss mask needs to know each token's characters")


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor, sequences taken apart."""
    if part is None:
        return
    inner = [part[key] for key in ("normalizers", "pretokenizers", "processors") if key in part]
    if inner:
        for step in inner[0]:
            yield from _steps(step)
    else:
        yield part


def _trimming(post_processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The step that trims spaces off the offsets. Raises Unknown where that is not clear."""
    steps = list(_steps(post_processor))
    known = {"ByteLevel", "RobertaProcessing", "TemplateProcessing", "BertProcessing"}
    trimming = [step for step in steps if step.get("trim_offsets")]
    if {step["type"] for step in steps} > known or len(trimming) > 1:
        raise Unknown("the loss mask needs to know each token's characters")
    return trimming[0] if trimming else None


def _edges(
    values: list[bytes], added: dict[int, str], prefix_space: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens,) bytes trimmed off the left, off the left of a first token, off the right."""
    count = len(values)
    left = np.fromiter((len(v) - len(v.lstrip(b" ")) for v in values), np.int64, count)
    right = np.fromiter((len(v) - len(v.rstrip(b" ")) for v in values), np.int64, count)
    left_first = np.maximum(0, left - 1) if prefix_space else left.copy()
    for number, content in added.items():
        if content.strip(BYTE_SPACE) != content:
            raise Unknown(f"it can't be told what of the token {content!r} is trimmed")
        ahead = content[: len(content) - len(content.lstrip(WHITESPACE))]
        behind = content[len(content.rstrip(WHITESPACE)) :]
        left[number], right[number] = len(ahead.encode()), len(behind.encode())
        left_first[number] = len((ahead[:-1] if prefix_space else ahead).encode())
    return left, left_first, right
