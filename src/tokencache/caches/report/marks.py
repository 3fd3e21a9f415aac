"""How documents begin and end, and the tokens that stand for what a tokenizer doesn't know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tokens.read import Documents, Segment
from .token_texts import TokenTexts

TOKENS_AT_ONCE = 2**22
COMMON_ENDS = 3


@dataclass(frozen=True)
class Flaws:
    """counts: by name; first: by name, the set of the first such document and its number there."""

    counts: dict[str, Any]
    first: dict[str, tuple[Documents, int]]


def flaws(sets: list[Documents], texts: TokenTexts) -> Flaws:
    """Documents that begin with two BOS, that lack EOS, or with unknown tokens."""
    counts: Counter[str] = Counter(double_bos=0, missing_eos=0, with_unknown=0, unknown_tokens=0)
    ends = np.zeros(0, np.int64)  # how many documents end with each id
    first: dict[str, tuple[Documents, int]] = {}
    for documents in sets:
        for number, segment in _segments(documents):
            begin, stop = segment.offsets[:-1], segment.offsets[1:]
            some = np.flatnonzero(stop > begin)
            found = {
                "double_bos": some[_double_bos(segment, some, texts.bos)],
                "missing_eos": some[_missing_eos(segment, some, texts.eos)],
            }
            found["with_unknown"], unknown = _unknown(segment, texts.unknown)
            counts["unknown_tokens"] += unknown
            last = np.bincount(segment.ids[stop[some] - 1], minlength=len(ends))
            last[: len(ends)] += ends
            ends = last
            for name, which in found.items():
                counts[name] += len(which)
                if len(which):
                    place = int(documents.segments.first[number] + which[0])
                    first.setdefault(name, (documents, place))
    order = np.argsort(-ends, kind="stable")[:COMMON_ENDS].tolist()
    common = [
        {"id": number, "token": texts.text(number), "documents": int(ends[number])}
        for number in order
        if ends[number]
    ]
    return Flaws(dict(counts) | {"ends": common}, first)


def largest_id(documents: Documents) -> int:
    """-1 where there is no token."""
    sizes = (int(s.ids.max()) for _, s in _segments(documents) if len(s.ids))
    return max(sizes, default=-1)


def _segments(documents: Documents) -> Iterator[tuple[int, Segment]]:
    for number in range(len(documents.segments)):
        yield number, documents.segments[number]


def _double_bos(segment: Segment, some: np.ndarray, bos: int | None) -> np.ndarray:
    """(some,) bool: whether BOS stands twice at the beginning."""
    if bos is None:
        return np.zeros(len(some), bool)
    begin = segment.offsets[some]
    second = np.minimum(begin + 1, segment.offsets[some + 1] - 1)
    return (second > begin) & (segment.ids[begin] == bos) & (segment.ids[second] == bos)


def _missing_eos(segment: Segment, some: np.ndarray, eos: int | None) -> np.ndarray:
    """(some,) bool: whether neither the last token nor the one before it is EOS: chat templates
    put a line break behind it."""
    if eos is None:
        return np.zeros(len(some), bool)
    last = segment.offsets[some + 1] - 1
    before = np.maximum(segment.offsets[some], last - 1)
    return (segment.ids[last] != eos) & (segment.ids[before] != eos)


def _unknown(segment: Segment, unknown: int | None) -> tuple[np.ndarray, int]:
    """The numbers of the documents with unknown tokens, and how many tokens these are."""
    places = [np.zeros(0, np.int64)]
    first, last = int(segment.offsets[0]), int(segment.offsets[-1])
    for start in range(first, last if unknown is not None else first, TOKENS_AT_ONCE):
        same = segment.ids[start : min(start + TOKENS_AT_ONCE, last)] == unknown
        if same.any():
            places.append(np.flatnonzero(same) + start)
    found = np.concatenate(places)
    return np.unique(np.searchsorted(segment.offsets, found, "right") - 1), len(found)
