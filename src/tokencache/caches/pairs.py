"""Rows of sources and targets: a text and its translation, from token shards of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..tokens.read import Documents
from .rows import Column, Gatherer, SplitRows
from .windows import Rows, Windows, cut_of, split_of


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
        return {"input_ids": self.source.types["input_ids"], "labels": self.target.types["labels"]}

    def columns(self, start: int, stop: int) -> dict[str, Column]:
        """The columns of rows start … stop as a cache has them."""
        sides = {"input_ids": self.source, "labels": self.target}
        return {name: side.columns(start, stop)[name] for name, side in sides.items()}

    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens of each row, of its source and its target together."""
        return self.source.lengths() + self.target.lengths()

    def counted(self, max_length: int) -> dict[str, Any]:
        """What cache.json says of it."""
        tokens = int(self.lengths().sum())
        # The decoder predicts the first token too.
        trained = self.target.gather.trained(self.target.rows.windows)[0]
        return {
            "rows": len(self),
            "windows": 2 * len(self),
            "tokens": tokens,
            "tokens_trained": int(trained.sum()),
            "rows_without_trained_tokens": int((trained == 0).sum()),
            "rows_cut": int((self.source.cut() | self.target.cut()).sum()),
            "rows_cut_without_trained_tokens": int((trained == 0).sum()),
            "targets": int(trained.sum()),
            "rows_without_targets": np.flatnonzero(trained == 0).tolist(),
            "filled": round(tokens / max(1, 2 * len(self) * max_length), 6),
        }


def splits(
    cache: dict[str, Any], tokens: dict[str, Any]
) -> tuple[dict[str, PairRows], dict[str, dict[str, int]]]:
    """The rows of each split, and what became of the pairs of each set of token shards.

    As pack does it for single documents; a pair is in a split, or left out, as a whole.
    """
    prefix, suffix, max_length = tokens["prefix"], tokens["suffix"], cache["max_length"]
    sets = {
        name: [Documents(side[name]["paths"]) for side in (tokens["splits"], tokens["targets"])]
        for name in tokens["splits"]
    }
    cuts = {}
    for name, sides in sets.items():
        _check(name, *sides)
        cuts[name] = windows(*sides, max_length, cache["overflow"], prefix + suffix)
    counts = {name: counted for name, (_, counted) in cuts.items()}
    cut = cut_of(cache, tokens, counts)
    found: dict[str, PairRows] = {}
    for name, sides in sets.items():
        both = cuts[name][0]
        chosen = split_of(name, cache["validation"], sides[0], both[0])
        for split, mine in chosen.items():
            rows = []
            for documents, some in zip(sides, both, strict=True):
                own = some[mine]
                single = Rows(own, np.arange(len(own) + 1), packed=False)
                gather = Gatherer(documents.segments, False, cut)
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
    length = np.stack([source.length, target.length])
    number = np.flatnonzero((length > specials).all(axis=0))
    length = length[:, number]
    long = (length > max_length).any(axis=0)
    counts = {
        "documents": len(source),
        "documents_empty": len(source) - len(number),
        "documents_too_long": int(long.sum()),
        "tokens_lost": int(np.maximum(length - max_length, 0).sum()),
    }
    if overflow == "drop":
        counts["tokens_lost"] = int(length[:, long].sum())
        number, length = number[~long], length[:, ~long]
    start, kept = np.zeros_like(number), np.minimum(length, max_length)
    return (Windows(number, start, kept[0]), Windows(number, start, kept[1])), counts


def _check(split: str, source: Documents, target: Documents) -> None:
    """Row n of both is of one pair. Raises UserError where token shards are of other rows."""
    if not np.array_equal(source.counts, target.counts):
        raise UserError(
            f"{split}: the token shards of the sources and the targets have not equally many "
            "documents; remove the cache's folder `tokens` and run snakemake again"
        )
