"""Views: caches that hold which tokens of which token shards make up a row, and no tokens.

    view.json                   {"splits", "packed", "masked", "cut": see windows.Cut, or null}
    SPLIT/token_shards.arrow    file, batch, documents: the record batches of the token shards
    SPLIT/windows.arrow         document (counted over those), length (special tokens included);
                                with overflow: split also start, the number of the first token
    SPLIT/rows.arrow            packed: first, the number of each row's first window, and the end

Of sources and targets, each has the files of a split, in SPLIT/source and SPLIT/target. A
row reads as it does from a dataset. This needs neither torch nor `datasets`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..base.arrays import as_arrow, as_numpy, as_texts
from ..base.arrow_io import Writer
from ..base.json_files import read_json
from ..base.manifest import REPAIR, wrong_sizes
from ..base.marks import mark_used
from ..config.explain import unknown
from ..documents.recipe import SIDES
from ..errors import UserError
from ..tokens.read import Segments, check_size
from .pairs import PairRows
from .rows import Column, Gatherer, SplitRows
from .windows import Cut, Rows, Windows, ranges, sums

if TYPE_CHECKING:
    import datasets

VIEW_FILE = "view.json"
ROWS_AT_ONCE = 2**20


class View:
    """The rows of one split: like a `datasets.Dataset` with its format set to numpy.

    A row is a dictionary of (tokens,) int64 arrays: input_ids and labels, and of packed
    rows position_ids and seq_lengths, which is (documents,). Files are opened when they
    are needed; workers of a data loader open their own.
    """

    def __init__(self, folder: str | Path, split: str, chosen: np.ndarray | None = None) -> None:
        self.folder, self.split = Path(os.path.realpath(folder)), split
        self._chosen = chosen
        view = read_json(self.folder / VIEW_FILE)
        if "cut" not in view:
            raise UserError(
                f"the view {self.folder} was made by an earlier version of tokencache; delete it "
                "and run `snakemake caches`"
            )
        self.packed: bool = view["packed"]
        shards = _read(self.folder / split / "token_shards.arrow")
        files = shards.column("file")
        batches, documents = as_numpy(shards.column("batch")), as_numpy(shards.column("documents"))
        lost = (
            f"is missing, and the view {self.folder} holds no tokens itself; run "
            "`snakemake caches` with the config.yaml that the view was made with: it makes it again"
        )
        segments = Segments(
            lambda number: os.path.normpath(self.folder / files[number].as_py()),
            batches, documents, lost,
        )  # fmt: skip
        cut = view["cut"] and Cut(view["cut"]["tail"], tuple(view["cut"]["untrained"]))
        self._gather = Gatherer(segments, view["masked"], cut)
        found = _read(self.folder / split / "windows.arrow")
        self._document, self._length = (as_numpy(found.column(n)) for n in ("document", "length"))
        self._start = as_numpy(found.column("start")) if "start" in found.schema.names else None
        self._first = None
        if self.packed:
            self._first = as_numpy(_read(self.folder / split / "rows.arrow").column("first"))

    def __reduce__(self) -> tuple:
        return View, (self.folder, self.split, self._chosen)

    @property
    def column_names(self) -> list[str]:
        return ["input_ids", "labels"] + (["position_ids", "seq_lengths"] if self.packed else [])

    def __len__(self) -> int:
        return len(self._all if self._chosen is None else self._chosen)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, wanted: int | slice | Sequence[int]) -> dict[str, Any]:
        """One row, or of several rows a list for each column."""
        if isinstance(wanted, int | np.integer):
            return self.__getitems__([wanted])[0]
        if isinstance(wanted, slice):
            wanted = range(len(self))[wanted]
        found = self.__getitems__(wanted)
        return {name: [row[name] for row in found] for name in self.column_names}

    def __getitems__(self, wanted: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Rows by their numbers, negative ones from the end, gathered all at once."""
        cut = {name: np.split(values.astype(np.int64), offsets[1:-1])
               for name, (offsets, values) in self.columns(wanted).items()}  # fmt: skip
        return [{name: values[i] for name, values in cut.items()} for i in range(len(wanted))]

    def columns(self, wanted: Sequence[int]) -> dict[str, Column]:
        """The columns of some rows as the dataset has them, in the types that it has."""
        return self._gather.columns(self._rows(self._numbers(wanted)))

    def select(self, wanted: Sequence[int]) -> View:
        """A view of some of the rows, in that order."""
        return View(self.folder, self.split, self._numbers(wanted))

    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens of each row."""
        if self._first is None:
            found = self._length.astype(np.int64)
        else:
            found = sums(self._length, self._first)
        return found if self._chosen is None else found[self._chosen]

    def targets(self) -> np.ndarray:
        """(rows,) int64: tokens of each row that are predicted and in the loss."""
        parts = [np.zeros(0, np.int64)]
        for start in range(0, len(self), ROWS_AT_ONCE):
            found = self._rows(self._numbers(range(len(self))[start : start + ROWS_AT_ONCE]))
            _, but_first = self._gather.trained(found.windows)
            parts.append(found.sums(but_first))
        return np.concatenate(parts)

    def places(
        self, wanted: Sequence[int], source: Callable[[str, int], str]
    ) -> dict[str, list[int]]:
        """The documents of some rows: by their source, their numbers in it.

        source: names the one that a token shard was made of, by the shard's path, and how often
        that came before: files can share what they hold.
        """
        segments = self._gather.segments
        names: list[str] = []
        before: Counter[str] = Counter()
        last = "", 0
        for number, batch in enumerate(segments.batches.tolist()):
            path = segments.path(number)
            if path != last[0] or batch <= last[1]:
                before[path] += 1
            names.append(source(path, before[path] - 1))
            last = path, batch
        first: dict[str, int] = {}
        for name, number in zip(names, segments.first, strict=False):
            first.setdefault(name, int(number))
        found: dict[str, list[int]] = {}
        documents = np.unique(self._rows(self._numbers(wanted)).windows.document)
        for document, segment in zip(documents, segments.of(documents), strict=True):
            name = names[segment]
            found.setdefault(name, []).append(int(document) - first[name])
        return found

    def check(self) -> None:
        """Raises UserError where a token shard is missing or was cut short; reading its rows
        would, too."""
        for path, _ in self.shards():
            check_size(path, self._gather.segments.lost)

    def shards(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Each token shard, and a function that raises UserError where it holds other documents
        than this view was made of; that opens it, and reads no tokens."""
        segments = self._gather.segments
        first: dict[str, int] = {}
        for number in range(len(segments)):
            first.setdefault(segments.path(number), number)
        for path, number in first.items():
            yield path, partial(segments.__getitem__, number)

    @property
    def _all(self) -> range:
        return range(len(self._length) if self._first is None else len(self._first) - 1)

    def _numbers(self, wanted: Sequence[int]) -> np.ndarray:
        """Numbers of rows in the files."""
        numbers = np.asarray(wanted, np.int64)
        count = len(self)
        if len(numbers) and not (-count <= numbers.min() and numbers.max() < count):
            raise IndexError(f"no such row: {self.folder.name}, {self.split} has {count:,}")
        numbers = np.where(numbers < 0, numbers + count, numbers)
        return numbers if self._chosen is None else self._chosen[numbers]

    def _rows(self, numbers: np.ndarray) -> Rows:
        which, first = numbers, np.arange(len(numbers) + 1)
        if self._first is not None:
            begin = self._first[numbers].astype(np.int64)
            count = self._first[numbers + 1] - begin
            which, first = ranges(begin, count), np.concatenate([[0], np.cumsum(count)])
        start = np.zeros_like(which) if self._start is None else self._start[which]
        columns = (self._document[which], start, self._length[which])
        windows = Windows(*(values.astype(np.int64) for values in columns))
        return Rows(windows, first, self.packed)


class PairView:
    """The rows of a split of sources and targets: a View whose labels are the targets' tokens."""

    packed = False
    column_names = ("input_ids", "labels")

    def __init__(self, source: View, target: View) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, wanted: int | slice | Sequence[int]) -> dict[str, Any]:
        """One row, or of several rows a list for each column."""
        return {
            "input_ids": self.source[wanted]["input_ids"],
            "labels": self.target[wanted]["labels"],
        }

    def __getitems__(self, wanted: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Rows by their numbers, negative ones from the end, gathered all at once."""
        sides = (side.__getitems__(wanted) for side in (self.source, self.target))
        return [
            {"input_ids": source["input_ids"], "labels": target["labels"]}
            for source, target in zip(*sides, strict=True)
        ]

    def columns(self, wanted: Sequence[int]) -> dict[str, Column]:
        """The columns of some rows as the dataset has them, in the types that it has."""
        sides = {"input_ids": self.source, "labels": self.target}
        return {name: side.columns(wanted)[name] for name, side in sides.items()}

    def select(self, wanted: Sequence[int]) -> PairView:
        """A view of some of the rows, in that order."""
        return PairView(self.source.select(wanted), self.target.select(wanted))

    def lengths(self) -> np.ndarray:
        """(2, rows) int64 tokens of each row's source and target."""
        return np.stack([self.source.lengths(), self.target.lengths()])

    def places(
        self, wanted: Sequence[int], source: Callable[[str, int], str]
    ) -> dict[str, list[int]]:
        """The documents of some rows, as of a View; a pair's sides are of the same row there."""
        return self.source.places(wanted, source)

    def check(self) -> None:
        """Raises UserError where a token shard is missing; reading its rows would, too."""
        self.source.check()
        self.target.check()


AnyView = View | PairView


def open_cache(
    folder: str | Path, split: str | None = None
) -> dict[str, AnyView | datasets.Dataset] | AnyView | datasets.Dataset:
    """The splits of a cache of either format by name, or one of them.

    Leaves in the folder, where that is allowed, that the cache is used now. Raises UserError
    for a folder that is no cache, for one with a file that is missing or not as long as
    cache.json says, and for a split that it lacks.
    """
    folder = Path(folder)
    splits = checked(folder)
    if split is not None and split not in splits:
        raise UserError(f"{folder}: {unknown(split, splits, '', what='split')}")
    mark_used(folder)
    try:
        if (folder / VIEW_FILE).exists():
            found = {name: _view(folder, name) for name in splits}
            return found if split is None else found[split]
        # Imported here: it takes a second, and what is missing or damaged needs none of it.
        import datasets

        return datasets.load_from_disk(str(folder if split is None else folder / split))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: the cache can't be read ({error}); {_mend(folder)}") from None


def _view(folder: Path, split: str) -> AnyView:
    views = [View(folder, name) for name in sides_of(folder, split)]
    return PairView(*views) if views[1:] else views[0]


def sides_of(folder: Path, split: str) -> list[str]:
    """The folders in a view's that have the files of a split, or of its sources and targets."""
    if not (folder / split / SIDES[0]).exists():
        return [split]
    return [f"{split}/{side}" for side in SIDES]


def checked(folder: Path) -> list[str]:
    """The splits of a cache, whose files are as long as its cache.json says."""
    try:
        about = read_json(folder / "cache.json")
        splits = about["splits"]
        files = {name: {"bytes": file["bytes"]} for name, file in about["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / 'cache.json'} is missing or damaged; {_mend(folder)}") from None
    for wrong in wrong_sizes(folder, files):
        raise UserError(f"{folder}/{wrong}; {_mend(folder)}")
    return list(splits)


def _mend(folder: Path) -> str:
    return f"delete {folder} and make it again with snakemake; {REPAIR}"


def write(
    folder: Path, splits: dict[str, SplitRows | PairRows], max_length: int, out: Path
) -> dict[Path, str]:
    """Write the files of a view that will be the folder `out`; returns checksums of the large."""
    checksums = {}
    sides = dict(_sides(splits))
    for name, split in sides.items():
        (folder / name).mkdir(parents=True)
        for file, columns in _tables(split, max_length, out).items():
            path = folder / name / file
            batch = pa.record_batch(columns)
            with Writer(path, batch.schema) as writer:
                writer.write(batch)
            checksums[path] = writer.checksum()
    one = next(iter(sides.values()))
    view = {
        "splits": list(splits),
        "packed": one.rows.packed,
        "masked": one.gather.masked,
        "cut": one.gather.cut and asdict(one.gather.cut),
    }
    (folder / VIEW_FILE).write_text(json.dumps(view))
    return checksums


def _sides(splits: dict[str, SplitRows | PairRows]) -> Iterator[tuple[str, SplitRows]]:
    """What has files of its own, by its folder: each split, or each side of it."""
    for name, split in splits.items():
        if isinstance(split, PairRows):
            yield from ((f"{name}/{side}", getattr(split, side)) for side in SIDES)
        else:
            yield name, split


def _tables(split: SplitRows, max_length: int, out: Path) -> dict[str, dict[str, pa.Array]]:
    """The columns of a split's files, in types no larger than they need."""
    found, segments = split.rows.windows, split.gather.segments
    document = np.uint32 if len(split.documents) < 2**32 else np.int64
    length = np.uint16 if max_length < 2**16 else np.uint32
    windows = {
        "document": found.document.astype(document),
        "length": found.length.astype(length),
    }
    if found.start.any():
        windows["start"] = found.start.astype(np.uint32)
    files = [segments.path(number) for number in range(len(segments))]
    shards = {file: os.path.relpath(file, out) for file in dict.fromkeys(files)}
    tables = {
        "token_shards.arrow": {
            "file": as_texts([shards[file] for file in files]),
            "batch": as_arrow(segments.batches),
            "documents": as_arrow(np.diff(segments.first)),
        },
        "windows.arrow": {name: as_arrow(values) for name, values in windows.items()},
    }
    if split.rows.packed:
        first = np.uint32 if len(found) < 2**32 else np.int64
        tables["rows.arrow"] = {"first": as_arrow(split.rows.first.astype(first))}
    return tables


def _read(path: Path) -> pa.RecordBatch:
    """The one record batch of a file of `write`, memory-mapped."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.get_batch(0)
