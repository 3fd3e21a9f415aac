"""Rows of sources and targets: a text and its translation, from token shards of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UserError
from .gather import Column, Gatherer, SplitRows
from .token_shards import Documents
from .windows import Rows, Windows, split_of


@dataclass(frozen=True)
class PairRows:
    """The rows of a split: of each, its source's tokens are input_ids, its target's labels."""

    source: SplitRows
    target: SplitRows

    def __len__(self) -> int:
        return len(self.source)

    @property
    def types(self) -> dict[str, np.dtype]:
        """The columns with the types of their values."""
        return {"input_ids": self.source.documents.dtype, "labels": self.target.documents.dtype}

    def columns(self, start: int, stop: int) -> dict[str, Column]:
        """The columns of rows start … stop as a cache has them."""
        sides = {"input_ids": self.source, "labels": self.target}
        return {name: _tokens(side, start, stop) for name, side in sides.items()}

    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens of each row, of its source and its target together."""
        return self.source.lengths() + self.target.lengths()

    def counted(self, max_length: int) -> dict[str, Any]:
        """What cache.json says of it."""
        tokens = int(self.lengths().sum())
        return {
            "rows": len(self),
            "windows": 2 * len(self),
            "tokens": tokens,
            "tokens_trained": int(self.target.lengths().sum()),
            "rows_without_trained_tokens": 0,
            "targets": int(self.target.lengths().sum()),
            "rows_without_targets": [],
            "filled": round(tokens / max(1, 2 * len(self) * max_length), 6),
        }


def _tokens(side: SplitRows, start: int, stop: int) -> Column:
    found = side.rows[start:stop].windows
    ends = np.cumsum(found.content + side.gather.specials)
    return np.concatenate([[0], ends]), side.gather(found)


def splits(
    cache: dict[str, Any], tokens: dict[str, Any]
) -> tuple[dict[str, PairRows], dict[str, dict[str, int]]]:
    """The rows of each split, and what became of the pairs of each set of token shards.

    As pack does it for single documents; a pair is in a split, or left out, as a whole.
    """
    specials, max_length = tokens["prefix"] + tokens["suffix"], cache["max_length"]
    found: dict[str, PairRows] = {}
    counts: dict[str, dict[str, int]] = {}
    for name, part in tokens["splits"].items():
        sides = [Documents(side[name]["paths"]) for side in (tokens["splits"], tokens["targets"])]
        _check(name, *sides)
        cut, counts[name] = windows(*sides, max_length, cache["overflow"], specials)
        chosen = split_of(name, cache["validation"], sides[0], part["shards"], cut[0])
        for split, mine in chosen.items():
            rows = []
            for documents, some in zip(sides, cut, strict=True):
                gather = Gatherer(documents.segments, tokens["prefix"], tokens["suffix"], False)
                own = some[mine]
                single = Rows(own, np.arange(len(own) + 1), packed=False)
                rows.append(SplitRows(single, gather, documents))
            found[split] = PairRows(*rows)
    return found, counts


def windows(
    source: Documents, target: Documents, max_length: int, overflow: str, specials: int
) -> tuple[tuple[Windows, Windows], dict[str, int]]:
    """Cut each side to max_length, or leave out pairs of which one is longer; also counts.

    A pair of which a side holds nothing is left out: it would teach that something means
    nothing.
    """
    room = max_length - specials
    content = np.stack([source.length, target.length]) - specials
    number = np.flatnonzero((content > 0).all(axis=0))
    content = content[:, number]
    long = (content > room).any(axis=0)
    counts = {
        "documents": len(source),
        "documents_empty": len(source) - len(number),
        "documents_too_long": int(long.sum()),
        "tokens_lost": int(np.maximum(content - room, 0).sum()),
    }
    if overflow == "drop":
        counts["tokens_lost"] = int((content[:, long] + specials).sum())
        number, content = number[~long], content[:, ~long]
    start, kept = np.zeros_like(number), np.minimum(content, room)
    return (Windows(number, start, kept[0]), Windows(number, start, kept[1])), counts


def _check(split: str, source: Documents, target: Documents) -> None:
    """Row n of both is of one pair. Raises UserError where token shards are of other rows."""
    if not np.array_equal(source.counts, target.counts):
        raise UserError(
            f"{split}: the token shards of the sources and the targets have not equally many "
            "documents; remove the cache's folder `tokens` and run snakemake again"
        )
