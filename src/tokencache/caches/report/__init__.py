"""The data report: what a team looks at before it trains on a cache.

`make` finds the figures of a cache whose rows are known, and refuses one that is of no use;
`write` puts them into its folder, as JSON and as a page. Figures are of whole documents, before
anything is cut, and of rows. The same cache has the same report on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...base.json_files import read_json
from ...errors import UserError
from ...tokens.read import Documents
from ..pairs import PairRows
from ..rows import SplitRows
from . import duplicates, examples, findings, lengths, marks
from .token_texts import TokenTexts

# Raise when report.json gets other fields.
VERSION = 2
JSON_FILE, PAGE_FILE = "report.json", "report.html"

Splits = dict[str, SplitRows | PairRows]


def make(
    cache: dict[str, Any], tokens: dict[str, Any], splits: Splits, made: dict[str, Any]
) -> dict[str, Any]:
    """The report as plain JSON.

    cache, tokens: as `pack.build` takes them; "vocabulary" in tokens is None, or {"size": ids
    that the model knows, "where" that is said, "advice"}. splits: the cache's rows. made: what
    cache.json says of each split. Raises UserError where an id is none of the model's.
    """
    facts = tokens["provenance"].get("tokenizer") or {}
    texts = TokenTexts.of(tokens.get("tokenizer"), facts)
    sides = {side: Side(sets) for side, sets in _sides(splits).items()}
    _check_vocabulary(cache, facts, tokens.get("vocabulary"), sides)
    flaws = {name: marks.flaws(side.sets, texts) for name, side in sides.items()}
    copies = duplicates.find([side.sets for side in sides.values()])
    report = {
        "version": VERSION,
        "key": cache["key"],
        **{name: cache[name] for name in ("model", "dataset", "max_length")},
        "settings": {name: cache[name] for name in ("overflow", "packing")},
        "format": cache.get("format", "dataset"),
        "pairs": len(sides) > 1,
        "tokenizer": texts.about(),
        "splits": {name: _of_split(split) for name, split in made.items()},
        "documents": {
            name: lengths.figures(side.lengths, cache["max_length"]) | flaws[name].counts
            for name, side in sides.items()
        },
        "duplicates": copies.figures(_places(splits)),
    }
    report["findings"] = findings.of(report)
    flawed = {}
    for flaw in reversed(flaws.values()):
        flawed |= flaw.first
    untrained = [name for name, split in made.items() if split["rows_without_trained_tokens"]]
    report["examples"] = examples.choose(splits, texts, untrained, flawed | copies.first())
    return report


def write(folder: Path, report: dict[str, Any]) -> None:
    """Put report.json and report.html into a cache's folder."""
    from .page import page

    (folder / JSON_FILE).write_text(as_json(report), encoding="utf-8")
    (folder / PAGE_FILE).write_text(page(report), encoding="utf-8")


def read(cache: str | Path) -> dict[str, Any] | None:
    """The report in a cache's folder; None where there is none that this version understands."""
    try:
        found = read_json(Path(cache, JSON_FILE))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("version") == VERSION else None


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, ensure_ascii=False, separators=(",", ":")) + "\n"


def lines(report: dict[str, Any], *levels: str) -> list[str]:
    """The findings of a report, a line each; of some levels only, where they are given."""
    chosen = levels or findings.LEVELS
    return [
        f"{found['level']}: {found['text']}"
        for found in report["findings"]
        if found["level"] in chosen
    ]


class Side:
    """Whole documents: all of them, or of pairs all sources or all targets."""

    def __init__(self, sets: list[Documents]) -> None:
        self.sets = sets
        self.lengths = np.concatenate([documents.length for documents in sets])


def _sides(splits: Splits) -> dict[str, list[Documents]]:
    """The sets of token shards that the rows are of, each once, in the order of their splits."""
    found: dict[str, list[Documents]] = {}
    for split in splits.values():
        for side, rows in examples.sides(split).items():
            sets = found.setdefault(side, [])
            if not any(documents is rows.documents for documents in sets):
                sets.append(rows.documents)
    return found


def _places(splits: Splits) -> dict[str, np.ndarray]:
    """Of each split, the numbers of its documents, counted over all sets of token shards."""
    found, sets = {}, next(iter(_sides(splits).values()))
    first = np.cumsum([0, *map(len, sets)])
    for name, split in splits.items():
        rows = next(iter(examples.sides(split).values()))
        number = next(n for n, documents in enumerate(sets) if documents is rows.documents)
        found[name] = first[number] + rows.rows.windows.document
    return found


def _of_split(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"trained_share": round(made["tokens_trained"] / max(1, made["tokens"]), 6)}


def _check_vocabulary(
    cache: dict[str, Any],
    facts: dict[str, Any],
    vocabulary: dict[str, Any] | None,
    sides: dict[str, Side],
) -> None:
    """Only where the tokenizer has more tokens than the model are its ids looked at."""
    if vocabulary is None or facts["vocab_size"] <= vocabulary["size"]:
        return
    sets = [documents for side in sides.values() for documents in side.sets]
    largest = max(map(marks.largest_id, sets))
    if largest >= vocabulary["size"]:
        raise UserError(
            f"{cache['model']}, {cache['dataset']}, {cache['max_length']}: there are ids up to "
            f"{largest}, and the model knows those below {vocabulary['size']} "
            f"({vocabulary['where']}); {vocabulary['advice']}"
        )
