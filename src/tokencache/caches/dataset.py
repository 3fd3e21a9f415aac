"""Token shards to a cache: rows of at most max_length tokens, as a DatasetDict on disk or a view.

Everything here is arithmetic on arrays over memory-mapped token shards; the only
copy of the tokens is the one that is written, and a view has none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..base import manifest
from ..base.arrays import as_arrow
from ..base.arrow_io import Writer
from ..base.hashing import key_of
from ..base.json_files import read_json, write_json
from ..base.progress import Progress
from ..base.publish import link, published
from ..base.records import PART_FILE
from ..errors import UserError
from ..tokens.read import Documents, check_bytes
from . import pairs, report, view
from .pairs import PairRows
from .rows import Column, Gatherer, SplitRows
from .windows import cut_of, rows, split_of, windows

ROWS_IN_A_BATCH = 1000
TOKENS_IN_A_BATCH = 2**22  # ends a batch earlier, so that long rows need no more memory
TOKENS_IN_A_FILE = 2**26  # of a split; some hundred MB

Split = SplitRows | PairRows


@dataclass(frozen=True)
class DataFile:
    """One Arrow file of a dataset: rows start … stop of a split. Its place in the folder
    and its rows follow from the data alone, whoever writes it."""

    split: str
    name: str
    start: int
    stop: int

    @property
    def path(self) -> str:
        return f"{self.split}/{self.name}"


def build(
    cache: dict[str, Any], tokens: dict[str, Any], out: Path, parts: Sequence[Path] = ()
) -> dict[str, Any]:
    """Build a cache folder and publish it by one rename; returns cache.json's content.

    cache: the plan's entry. tokens: {"prefix", "suffix": special token counts,
    "splits": {split: {"paths": token shards}}, "targets": of
    sources and targets the same of the targets, "provenance": what goes into cache.json as
    it is, "tokenizer": its folder, "vocabulary": what `report.make` says; the last two may be
    left out}. parts: folders of `build_part`, which hold data files;
    those that none holds are written here.
    """
    splits, counts = split_rows(cache, tokens)
    if out.exists():  # another process made it meanwhile, and maybe removed the parts
        return read_json(out / "cache.json")
    made = {name: split.counted(cache["max_length"]) for name, split in splits.items()}
    _check(cache, made, counts)
    about = report.make(cache, tokens, splits, made)
    is_view = cache.get("format") == "view"
    with published(out, folder=True, needs=None if is_view else _bytes_of(splits)) as folder:
        if is_view:
            checksums = view.write(folder, splits, cache["max_length"], out)
        else:
            if not parts:  # each part looked at some
                check_bytes(_paths(tokens))
            checksums = _write_dataset(folder, cache, splits, parts)
        report.write(folder, about)
        summary = {
            **tokens["provenance"],
            "key": cache["key"],
            "documents": counts,
            "splits": made,
            "files": manifest.contents(folder, checksums),
        }
        summary["checksum"] = key_of(summary)
        write_json(folder / "cache.json", summary)
    for line in report.lines(about):
        print(line, file=sys.stderr)
    return summary


def _paths(tokens: dict[str, Any]) -> list[str]:
    """All token shards of a cache."""
    sides = [tokens["splits"], tokens.get("targets") or {}]
    return [path for side in sides for part in side.values() for path in part["paths"]]


def look(cache: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
    """The report that `build` puts into a cache's folder."""
    splits, _ = split_rows(cache, tokens)
    made = {name: split.counted(cache["max_length"]) for name, split in splits.items()}
    return report.make(cache, tokens, splits, made)


def build_part(
    cache: dict[str, Any], tokens: dict[str, Any], out: Path, number: int, count: int
) -> None:
    """Publish part `number` of `count` of a large dataset: some of its data files, whole.

    Which files there are and what is in them is the same for every count.
    """
    splits, _ = split_rows(cache, tokens)
    check_bytes(_paths(tokens)[number::count])
    with published(out, folder=True) as folder:
        checksums = _write_files(folder, cache, splits, _data_files(splits)[number::count])
        files = manifest.contents(folder, checksums)
        write_json(folder / PART_FILE, {"key": cache["key"], "files": files})


def split_rows(
    cache: dict[str, Any], tokens: dict[str, Any]
) -> tuple[dict[str, Split], dict[str, dict[str, int]]]:
    """The rows of each split, and what became of the documents of each set of token shards."""
    if tokens.get("targets"):
        return pairs.splits(cache, tokens)
    prefix, suffix, max_length = tokens["prefix"], tokens["suffix"], cache["max_length"]
    sets = {name: Documents(part["paths"]) for name, part in tokens["splits"].items()}
    masked = any(documents.masked for documents in sets.values())
    cuts = {
        name: windows(documents, max_length, cache["overflow"], prefix, suffix)
        for name, documents in sets.items()
    }
    counts = {name: counted for name, (_, counted) in cuts.items()}
    cut = cut_of(cache, tokens, counts)
    splits = {}
    for name, documents in sets.items():
        found = cuts[name][0]
        gather = Gatherer(documents.segments, masked, cut)
        chosen = split_of(name, cache["validation"], documents, found)
        for split, mine in chosen.items():
            packed = rows(found[mine], max_length, cache["packing"])
            splits[split] = SplitRows(packed, gather, documents)
    return splits, counts


def _check(cache: dict[str, Any], made: dict[str, Any], counts: dict[str, Any]) -> None:
    """Raises UserError where there is nothing to train on."""
    where = f"{cache['model']}, {cache['dataset']}, {cache['max_length']}"
    if not made["train"]["rows"]:
        raise UserError(
            f"{where}: no document is left to train on ({counts}); with overflow: drop, "
            "max_length may be too small"
        )
    if not made["train"]["tokens_trained"]:
        raise UserError(
            f"{where}: the loss mask leaves no token to train on; look at loss: and document: of "
            "the data set"
        )


def _bytes_of(splits: dict[str, Split]) -> int:
    """About how many bytes the data files of a dataset will have."""
    size = 0
    for split in splits.values():
        widths = [dtype.itemsize for name, dtype in split.types.items() if name != "seq_lengths"]
        # A token of a pair stands in one of its columns.
        a_token = max(widths) if isinstance(split, PairRows) else sum(widths)
        size += int(split.lengths().sum()) * a_token
    return size


# Datasets: as `datasets` saves them, Arrow streams, state.json and dataset_info.json


def _write_dataset(
    folder: Path, cache: dict[str, Any], splits: dict[str, Split], parts: Sequence[Path]
) -> dict[Path, str]:
    """Returns the checksums of the data files."""
    files = _data_files(splits)
    checksums = _join(folder, cache, files, parts)
    if lacking := [file for file in files if folder / file.path not in checksums]:
        checksums |= _write_files(folder, cache, splits, lacking)
    for name, split in splits.items():
        names = [file.name for file in files if file.split == name]
        describe_split(folder / name, names, schema_of(split.types), cache["key"])
    describe_splits(folder, list(splits))
    return checksums


def describe_splits(folder: Path, splits: list[str]) -> None:
    """Write what makes a folder a DatasetDict of its folders."""
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))


def describe_split(folder: Path, files: list[str], schema: pa.Schema, key: str) -> None:
    """Write what makes a folder of Arrow streams a split: its columns and its files."""
    info = {"features": _features(schema), "citation": "", "description": "", "homepage": "",
            "license": ""}  # fmt: skip
    state = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": key_of([key, folder.name])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    for file, value in (("dataset_info.json", info), ("state.json", state)):
        (folder / file).write_text(json.dumps(value, indent=2, sort_keys=True))


def _data_files(splits: dict[str, Split]) -> list[DataFile]:
    """Those of a dataset: of each split, a new one every so many tokens."""
    found = []
    for name, split in splits.items():
        parts = _parts(split.lengths(), TOKENS_IN_A_FILE)
        found += [
            DataFile(name, f"data-{number:05d}-of-{len(parts):05d}.arrow", start, stop)
            for number, (start, stop) in enumerate(parts)
        ]
    return found


def _write_files(
    folder: Path, cache: dict[str, Any], splits: dict[str, Split], files: list[DataFile]
) -> dict[Path, str]:
    """Write data files into a folder; returns their checksums."""
    total = sum(file.stop - file.start for file in files)
    label = f"pack {cache['model']} {cache['dataset']} {cache['max_length']}"
    checksums = {}
    with Progress(total, "rows", label) as progress:
        for file in files:
            split, path = splits[file.split], folder / file.path
            path.parent.mkdir(exist_ok=True)
            schema = schema_of(split.types)
            with Writer(path, schema, stream=True) as writer:
                for start, stop in _batches(split.lengths()[file.start : file.stop]):
                    columns = split.columns(file.start + start, file.start + stop)
                    writer.write(record_batch(columns, schema))
                    progress.update(stop - start)
            checksums[path] = writer.checksum()
    return checksums


def _join(
    folder: Path, cache: dict[str, Any], files: list[DataFile], parts: Sequence[Path]
) -> dict[Path, str]:
    """Take data files over that several jobs wrote; returns the checksums of those.

    Who makes the cache first removes the parts, so any of them may be gone at any moment.
    """
    written: dict[str, tuple[Path, dict[str, Any]]] = {}
    for part in parts:
        with suppress(FileNotFoundError):
            about = read_json(part / PART_FILE)
            if about["key"] == cache["key"]:
                written |= {path: (part / path, made) for path, made in about["files"].items()}
    checksums = {}
    for file in files:
        path = folder / file.path
        path.parent.mkdir(exist_ok=True)
        if file.path in written:
            source, made = written[file.path]
            with suppress(FileNotFoundError):
                if source.stat().st_size == made["bytes"]:  # or it is written anew
                    link(source, path)
                    checksums[path] = made["blake3"]
    return checksums


def _parts(per_row: np.ndarray, tokens: int) -> list[tuple[int, int]]:
    """Row ranges that are all rows: a new one where another multiple of `tokens` is passed."""
    number = np.maximum(0, np.cumsum(per_row) - 1) // tokens
    starts = np.flatnonzero(np.diff(number, prepend=-1)) if len(per_row) else np.zeros(1, int)
    stops = [*starts[1:], len(per_row)]
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]


def _batches(per_row: np.ndarray) -> Iterator[tuple[int, int]]:
    """Row ranges of a data file's record batches."""
    for first, last in _parts(per_row, TOKENS_IN_A_BATCH):
        for at in range(first, last, ROWS_IN_A_BATCH):
            yield at, min(last, at + ROWS_IN_A_BATCH)


def record_batch(columns: dict[str, Column], schema: pa.Schema) -> pa.RecordBatch:
    """Columns of lists by their offsets and values, of the types of the schema."""
    arrays = [
        pa.ListArray.from_arrays(as_arrow(offsets.astype(np.int32)), as_arrow(values))
        for offsets, values in (columns[name] for name in schema.names)
    ]
    return pa.record_batch(arrays, schema=schema)


def schema_of(types: dict[str, np.dtype]) -> pa.Schema:
    """Columns of lists with values of these types, described in the words of `datasets` too."""
    kinds = {name: pa.from_numpy_dtype(dtype) for name, dtype in types.items()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])
    return schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": _features(schema)}}, sort_keys=True)}
    )


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The columns in the words of `datasets`."""
    return {
        field.name: {
            "_type": "List",
            "feature": {"_type": "Value", "dtype": str(field.type.value_type)},
        }
        for field in schema
    }
