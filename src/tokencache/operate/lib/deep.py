"""Rows of a cache compared with what Hugging Face's tokenizer makes of the sources now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...base.json_files import read_json
from ...base.progress import Progress
from ...base.records import CACHE_FILE
from ...caches import dataset
from ...caches.pairs import PairRows
from ...caches.rows import SplitRows
from ...caches.view import AnyView, open_cache
from ...caches.windows import Windows
from ...config.schema import Config
from ...errors import UserError
from ...plan.plan import tokenizer_path, tokens_path
from . import made_of
from .hugging_face import Document, HuggingFace
from .made_of import Changed, Sources, SourceShard
from .spoken import NotCompared


@dataclass
class Compared:
    """What became of the rows of a cache that were chosen.

    rows: how many; same: those that are as they should be; differing: of each other row what is
    wrong, and where: the cache, and token shards that have it wrong already; not_compared: how
    many of the rows, by the reason.
    """

    cache: str
    rows: int = 0
    same: int = 0
    differing: list[tuple[list[Path], str]] = field(default_factory=list)
    not_compared: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Place:
    """A stretch of a document in a row: (side, split, shard) and number there; first token."""

    shard: tuple[int, str, int]
    number: int
    start: int


def compare(
    config: Config, folder: Path, count: int, draw: np.random.Generator, damaged: set[Path]
) -> Compared:
    """Compare `count` random rows of a cache, or all where it has no more.

    What can't be compared, because something is missing, was changed since or is `damaged`, is
    told and no error; of what is damaged nothing is opened.
    """
    about = read_json(folder / CACHE_FILE)
    total = sum(split["rows"] for split in about["splits"].values())
    found = Compared(str(folder), min(count, total))
    try:
        rows = _Rows(config, folder, about, damaged)
        chosen = draw.choice(total, found.rows, replace=False).tolist()
        rows.compare(chosen, found)
    except Changed as why:
        found.not_compared[str(why)] = found.rows
    except UserError as error:
        found.differing = [([folder], str(error))]
    return found


class _Rows:
    """The rows of a cache, and which documents they are of."""

    def __init__(
        self, config: Config, folder: Path, about: dict[str, Any], damaged: set[Path]
    ) -> None:
        self.config, self.folder, self.about = config, folder, about
        self.damaged = damaged
        self.shards = made_of.shards(about)
        self.recipes = made_of.recipes(about)
        self.tokenizer = Path(tokenizer_path(config.cache, about["tokenizer"]["key"]))
        self.splits = self._splits()
        self.opened = {name: open_cache(folder, name) for name in self.splits}

    def _splits(self) -> dict[str, SplitRows | PairRows]:
        """The rows by the arithmetic that made them. Raises Changed where it lacks something."""
        about = self.about
        self._check("tokenizer", self.tokenizer)
        if not made_of.is_in_order(about):
            raise Changed("its cache.json does not tell the order of its sources")
        self.sources, sides = {}, [{}, {}]
        for split, shards in self.shards.items():
            named = [made_of.source_of(shard, about) for shard in shards]
            if None in named:
                raise Changed("another version of tokencache made it")
            self.sources[split] = [source for source, _ in named]
            for side in range(len(self.recipes)):
                paths = [self.path_of((side, split, n)) for n in range(len(shards))]
                sides[side][split] = {"paths": paths, "shards": [name for _, name in named]}
        for path in (path for side in sides for part in side.values() for path in part["paths"]):
            # Which documents are in a row follows from the lengths of all.
            self._check("token shard", Path(path))
        special = self.recipes[0]["add_special_tokens"]
        tokens = {
            "prefix": len(about["tokenizer"]["prefix"]) if special else 0,
            "suffix": len(about["tokenizer"]["suffix"]) if special else 0,
            "splits": sides[0],
            "targets": sides[1],
        }
        return dataset.split_rows(about["settings"], tokens)[0]

    def _check(self, what: str, path: Path) -> None:
        if path in self.damaged or not path.exists():
            state = "damaged" if path in self.damaged else "gone"
            raise Changed(f"its {what} {path} is {state}")

    def path_of(self, place: tuple[int, str, int]) -> str:
        side, split, number = place
        tokens = self.shards[split][number].tokens[side]
        return tokens_path(self.config.cache, self.about["tokenizer"]["key"], tokens)

    def compare(self, chosen: list[int], found: Compared) -> None:
        rows = list(self._places(chosen))
        needed: dict[tuple[int, str, int], set[int] | None] = {}
        for _, _, places in rows:
            for place in (place for side in places for place in side):
                needed.setdefault(place.shard, set()).add(place.number)
        whole = len(chosen) == sum(split["rows"] for split in self.about["splits"].values())
        if whole:  # then it can be told what is in no row, too
            needed = dict.fromkeys(self._shards())
        documents, lost = self._documents(needed)
        for split, number, places in rows:
            if why := self._unknown(places, documents, lost):
                found.not_compared[why] += 1
            elif wrong := self._wrong(split, number, places, documents):
                found.differing.append(wrong)
            else:
                found.same += 1
        if whole and not lost and not found.differing:
            placed = Counter(place for _, _, places in rows for side in places for place in side)
            if wrong := self._misplaced(placed, documents):
                found.differing.append(([self.folder], f"{self.folder}, {wrong}"))

    def _shards(self) -> Iterator[tuple[int, str, int]]:
        for side in range(len(self.recipes)):
            for split, shards in self.shards.items():
                for number in range(len(shards)):
                    yield side, split, number

    def _misplaced(self, placed: Counter[_Place], documents: dict) -> str:
        """What is in no row, or in two, where all rows are known."""
        wanted: Counter[_Place] = Counter()
        for (shard, number), document in documents.items():
            sides = [documents[(n, *shard[1:]), number] for n in range(len(self.recipes))]
            if any(isinstance(one, NotCompared) for one in sides):
                return ""
            if all(one.windows for one in sides):  # of pairs, both or none
                wanted.update(_Place(shard, number, start) for start in document.windows)
        for place in (wanted - placed) + (placed - wanted):
            _, split, number = place.shard
            path = self.shards[split][number].path
            where = f"document {place.number + 1} of shard {number + 1} of {split} ({path})"
            return f"{where}, from its token {place.start} on, is in {placed[place]} rows"
        return ""

    def _unknown(self, places: list[list[_Place]], documents: dict, lost: dict) -> str:
        """Why it can't be told what a row should be, if it can't."""
        for place in (place for side in places for place in side):
            if place.shard in lost:
                return lost[place.shard]
            if isinstance(why := documents.get((place.shard, place.number)), NotCompared):
                return str(why)
        return ""

    def _places(self, chosen: list[int]) -> Iterator[tuple[str, int, list[list[_Place]]]]:
        """Split, number, and of each side the places of its documents, of each chosen row."""
        first = 0
        for split, rows in self.splits.items():
            made = self.about["splits"][split]["rows"]
            if len(rows) != made:
                raise UserError(f"{split} has {made:,} rows, but its token shards give {len(rows)}")
            sides = [rows.source, rows.target] if isinstance(rows, PairRows) else [rows]
            for number in sorted(n - first for n in chosen if first <= n < first + made):
                yield (
                    split,
                    number,
                    [self._of_row(split, side, rows, number) for side, rows in enumerate(sides)],
                )
            first += made

    def _of_row(self, split: str, side: int, rows: SplitRows, number: int) -> list[_Place]:
        own = split if split in self.shards else "train"  # validation is drawn from it
        windows: Windows = rows.rows[number : number + 1].windows
        edges = np.concatenate([[0], np.cumsum(rows.documents.counts)])
        shards = np.searchsorted(edges, windows.document, "right") - 1
        inside = windows.document - edges[shards]
        columns = (shards.tolist(), inside.tolist(), windows.start.tolist())
        return [_Place((side, own, s), n, start) for s, n, start in zip(*columns, strict=True)]

    def _documents(self, needed: dict[tuple[int, str, int], set[int] | None]) -> tuple[dict, dict]:
        """Documents by their shard and number there; why there are none, by shard."""
        made = [HuggingFace(self.tokenizer, recipe, self.about) for recipe in self.recipes]
        there = Sources(self.config.shard_size)
        documents: dict[tuple, Document] = {}
        lost: dict[tuple, str] = {}
        with Progress(len(needed), "sources' shards", f"compare {self.folder}") as progress:
            for place, numbers in needed.items():
                side, split, number = place
                shard: SourceShard = self.shards[split][number]
                try:
                    if Path(shard.fetched) in self.damaged:
                        raise Changed(f"{shard.fetched} is damaged")
                    piece, digest = there.piece(shard, self.sources[split][number])
                    for n, document in made[side].documents(piece, digest, numbers):
                        documents[place, n] = document
                except Changed as why:
                    lost[place] = str(why)
                progress.update(1)
        return documents, lost

    def _wrong(
        self, split: str, number: int, places: list[list[_Place]], documents: dict
    ) -> tuple[list[Path], str] | None:
        """Where a row is wrong, and what is."""
        row = _lists(self.opened[split], number)
        try:
            wanted = self._wanted(places, documents)
        except KeyError:
            where = f"{split} row {number}: it holds a piece of a document that is cut elsewhere"
            return [self.folder], f"{self.folder}, {where}, or empty"
        different = [name for name in wanted if row[name] != wanted[name]]
        if not different:
            return None
        where = f"{split} row {number}: {different[0]} {_first(row, wanted, different[0])}"
        rows = self.splits[split]
        sides = [rows.source, rows.target] if isinstance(rows, PairRows) else [rows]
        shards = {
            Path(self.path_of(place.shard)): None
            for side, its_places in zip(sides, places, strict=True)
            for place in its_places
            if _ids_of(side, place) != documents[place.shard, place.number].ids
        }
        return [self.folder, *shards], f"{self.folder}, {where}"

    def _wanted(self, places: list[list[_Place]], documents: dict) -> dict[str, list[int]]:
        windows = [
            [documents[p.shard, p.number].windows[p.start] for p in of_side] for of_side in places
        ]
        ids = [[i for window in of_side for i in window.ids] for of_side in windows]
        if len(places) == 2:
            return {"input_ids": ids[0], "labels": windows[1][0].labels(packed=False)}
        packed = self.about["settings"]["packing"] != "none"
        labels = [label for window in windows[0] for label in window.labels(packed)]
        found = {"input_ids": ids[0], "labels": labels}
        if packed:
            found["seq_lengths"] = [len(window.ids) for window in windows[0]]
            found["position_ids"] = [n for length in found["seq_lengths"] for n in range(length)]
        return found


def _lists(rows: Any, number: int) -> dict[str, list[int]]:
    row = rows[number]
    return {n: v.tolist() if isinstance(rows, AnyView) else v for n, v in row.items()}


def _first(row: dict[str, list], wanted: dict[str, list], name: str) -> str:
    """Where two lists differ first."""
    ours, theirs = row[name], wanted[name]
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"at {place} is {a}, and by Hugging Face's tokenizer {b}"
    return f"has {len(ours)} values, and by Hugging Face's tokenizer {len(theirs)}"


def _ids_of(rows: SplitRows, place: _Place) -> list[int]:
    """The ids of a document in its token shard."""
    edges = np.concatenate([[0], np.cumsum(rows.documents.counts)])
    document = edges[place.shard[2]] + place.number
    segments = rows.documents.segments
    number = int(segments.of(np.array([document]))[0])
    segment, inside = segments[number], int(document - segments.first[number])
    return segment.ids[segment.offsets[inside] : segment.offsets[inside + 1]].tolist()
