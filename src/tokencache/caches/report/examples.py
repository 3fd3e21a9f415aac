"""A few documents as the rows hold them, with which of their tokens are trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...documents.recipe import SIDES
from ...tokens.read import Documents
from ..pairs import PairRows
from ..rows import IGNORED, SplitRows
from ..windows import Rows
from .token_texts import TokenTexts

DRAWN = 4  # evenly over the rows of train
HEAD, TAIL = 200, 50  # tokens of a longer document
ROWS_AT_ONCE = 2**16
SHOWN = 300  # of one that is not much longer

Split = SplitRows | PairRows
# A split, and the number of a window of it.
Place = tuple[str, int]


def sides(split: Split) -> dict[str, SplitRows]:
    """Of pairs, sources and targets by their names."""
    if isinstance(split, PairRows):
        return {side: getattr(split, side) for side in SIDES}
    return {"all": split}


def choose(
    splits: dict[str, Split],
    texts: TokenTexts,
    untrained: list[str],
    flawed: dict[str, tuple[Documents, int]],
) -> list[dict[str, Any]]:
    """Some documents of train, evenly, and one for each flaw.

    untrained: the splits with rows without a trained token. flawed: by the flaw's name, the
    set of the document and its number there.
    """
    shown: dict[Place, list[str]] = {}
    count = len(_windows(splits["train"]))
    for part in range(DRAWN):
        shown["train", count * (2 * part + 1) // (2 * DRAWN)] = []
    for name in untrained:
        if place := _untrained(name, splits[name]):
            shown.setdefault(place, []).append("untrained")
    for why, (documents, number) in flawed.items():
        if place := _place(splits, documents, number):
            shown.setdefault(place, []).append(why)
    return [_example(splits[at[0]], at, why, texts) for at, why in shown.items()]


def _windows(split: Split) -> Any:
    return next(iter(sides(split).values())).rows.windows


def _untrained(name: str, split: Split) -> Place | None:
    """The first row without a trained token, which is near the start where there are many."""
    if isinstance(split, PairRows):
        return None
    for start in range(0, len(split), ROWS_AT_ONCE):
        rows = split.rows[start : start + ROWS_AT_ONCE]
        # Packed, a document's first token is none.
        trained = rows.sums(split.gather.trained(rows.windows)[int(rows.packed)])
        nothing = np.flatnonzero(trained == 0)
        if len(nothing):
            return name, int(split.rows.first[start + nothing[0]])
    return None


def _place(splits: dict[str, Split], documents: Documents, number: int) -> Place | None:
    """Where the rows have a document; None where they leave it out."""
    for name, split in splits.items():
        for side in sides(split).values():
            if side.documents is documents:
                found = np.flatnonzero(side.rows.windows.document == number)
                if len(found):
                    return name, int(found[0])
    return None


def _example(split: Split, place: Place, why: list[str], texts: TokenTexts) -> dict[str, Any]:
    name, window = place
    parts = sides(split)
    rows = next(iter(parts.values())).rows
    return {
        "why": why,
        "split": name,
        "row": int(np.searchsorted(rows.first, window, "right")) - 1,
        "document": int(rows.windows.document[window]),
        "parts": {side: _part(rows, window, texts, side) for side, rows in parts.items()},
    }


def _part(side: SplitRows, window: int, texts: TokenTexts, name: str) -> dict[str, Any]:
    """A window's tokens; of pairs, the targets' are trained on and the sources' are not."""
    one = Rows(side.rows.windows[window : window + 1], np.arange(2), side.rows.packed)
    columns = side.gather.columns(one)
    ids = columns["input_ids"][1]
    trained = (columns["labels"][1] != IGNORED) & (name != "source")
    length = int(side.documents.length[one.windows.document[0]])
    shown = np.arange(len(ids))
    if len(ids) > SHOWN:
        shown = np.concatenate([shown[:HEAD], shown[-TAIL:]])
    numbers = ids[shown].tolist()
    return {
        "tokens": len(ids),
        "trained": int(trained.sum()),
        "start": int(one.windows.start[0]),
        "document_tokens": length,
        "left_out": len(ids) - len(shown),  # after the first HEAD
        "ids": numbers,
        "texts": [texts.text(number) for number in numbers],
        "mask": "".join("1" if one else "0" for one in trained[shown]),
        "special": [n for n, number in enumerate(numbers) if number in texts.special],
    }
