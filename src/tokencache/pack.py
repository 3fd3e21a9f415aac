"""Token shards to a cache: rows of at most max_length tokens, as a DatasetDict on disk.

Everything here is arithmetic on arrays over memory-mapped token shards; the only
copy of the tokens is the one that is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from .errors import UserError
from .files import hash_file, key_of, published
from .packing import best_fit_decreasing
from .progress import Progress
from .readers import as_arrow
from .streams import Writer
from .token_shards import Documents

IGNORED = -100  # the label that torch's cross entropy leaves out
ROWS_IN_A_BATCH = 1000
TOKENS_IN_A_BATCH = 2**22  # ends a batch earlier, so that long rows need no more memory
TOKENS_IN_A_FILE = 2**26  # of a split; some hundred MB


@dataclass(frozen=True)
class Windows:
    """Stretches of documents that fit into max_length: (n,) int64 each.

    document: its number; start: first content token kept, without the special
    tokens; content: how many. Special tokens are put around each window.
    """

    document: np.ndarray
    start: np.ndarray
    content: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Windows:
        return Windows(self.document[chosen], self.start[chosen], self.content[chosen])


def windows(
    documents: Documents, max_length: int, overflow: str, specials: int
) -> tuple[Windows, dict[str, int]]:
    """Cut documents to max_length by the overflow policy; also counts what that lost.

    Equal to Hugging Face's truncation: special tokens count towards max_length.
    Documents without any token are left out.
    """
    room = max_length - specials
    number = np.flatnonzero(documents.length > 0)
    content = documents.length[number] - specials
    long = content > room
    counts = {
        "documents": len(documents),
        "documents_empty": len(documents) - len(number),
        "documents_too_long": int(long.sum()),
        "tokens_lost": 0,
    }
    if overflow == "split":
        pieces = np.maximum(1, -(-content // room))
        first = np.repeat(np.cumsum(pieces) - pieces, pieces)
        start = (np.arange(pieces.sum()) - first) * room
        kept = np.minimum(room, np.repeat(content, pieces) - start)
        return Windows(np.repeat(number, pieces), start, kept), counts
    counts["tokens_lost"] = int((content[long] - room).sum())
    if overflow == "drop":
        counts["tokens_lost"] = int(content[long].sum() + specials * long.sum())
        number, content = number[~long], content[~long]
    return Windows(number, np.zeros_like(number), np.minimum(content, room)), counts


def draw_validation(
    documents: Documents, shard_keys: list[str], fraction: float, seed: int
) -> np.ndarray:
    """(n,) bool: which documents are kept for validation, exactly that fraction of them.

    Each document draws a number from the seed, its source shard's key and its row
    there. So the same documents are kept for every model and max_length, and rows
    added elsewhere move hardly any. At least one document is kept on each side.
    """
    counts = np.bincount(documents.shard, minlength=len(shard_keys))
    shards = zip(shard_keys, counts, strict=True)
    draws = np.concatenate([np.zeros(0), *(_draws(seed, key, n) for key, n in shards)])
    kept = np.zeros(len(documents), bool)
    if fraction > 0 and len(documents) > 1:
        count = min(max(1, round(fraction * len(documents))), len(documents) - 1)
        kept[np.argsort(draws, kind="stable")[:count]] = True
    return kept


def _draws(seed: int, key: str, count: int) -> np.ndarray:
    """Numbers in [0, 1) of a shard's rows: the same for each row, however many follow it."""
    words = np.frombuffer(blake3(f"{seed} {key}".encode()).digest(), "<u8")[:2]
    return np.random.Generator(np.random.Philox(key=words)).random(count)


@dataclass(frozen=True)
class Rows:
    """Rows of a split: windows in order, `first[i]:first[i + 1]` of them in row i."""

    windows: Windows
    first: np.ndarray
    packed: bool

    def __len__(self) -> int:
        return len(self.first) - 1


def rows(found: Windows, max_length: int, packing: str, specials: int) -> Rows:
    """One window a row, or several by best-fit decreasing, in the order of their documents."""
    count = len(found.document)
    if packing == "none" or count == 0:
        return Rows(found, np.arange(count + 1), packing != "none")
    bins = best_fit_decreasing(found.content + specials, max_length)
    order = np.argsort(bins, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(bins))])
    return Rows(found[order], first, True)


class Gatherer:
    """Copies windows out of the segments they lie in."""

    def __init__(self, documents: Documents, prefix: int, suffix: int) -> None:
        self.documents, self.prefix, self.suffix = documents, prefix, suffix
        self.masked = documents.masked

    def __call__(self, found: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (tokens,), trained on (tokens,) bool, and lengths (windows,) of the windows."""
        prefix, suffix = self.prefix, self.suffix
        lengths = found.content + prefix + suffix
        ends = np.cumsum(lengths)
        ids = np.empty(ends[-1] if len(ends) else 0, self.documents.dtype)
        steps = np.zeros(len(ids) + 1, np.int32)  # +1 and -1 around what is trained on
        at = self.documents.start[found.document]
        end = at + self.documents.length[found.document]
        begin = ends - lengths
        same = np.full(len(lengths), 1)
        stretches = [(at + prefix + found.start, found.content, begin + prefix)]
        if prefix:
            stretches.append((at, same * prefix, begin))
        if suffix:
            stretches.append((end - suffix, same * suffix, ends - suffix))
        segments = self.documents.segment[found.document]
        for number in np.unique(segments):
            mine = segments == number
            segment = self.documents.segments[number]
            for source, count, target in stretches:
                read, write = _ranges(source[mine], count[mine], target[mine])
                ids[write] = segment.ids[read]
                if self.masked:
                    _mark(steps, segment.spans, source[mine], count[mine], target[mine])
        trained = (
            np.cumsum(steps[:-1], dtype=np.int32) > 0 if self.masked else np.ones(len(ids), bool)
        )
        return ids, trained, lengths


def _ranges(source: np.ndarray, count: np.ndarray, target: np.ndarray) -> tuple:
    """Indices that copy count[i] elements from source[i] to target[i], for all i at once."""
    step = np.arange(count.sum())
    before = np.cumsum(count) - count
    return step + np.repeat(source - before, count), step + np.repeat(target - before, count)


def _mark(
    steps: np.ndarray, spans: np.ndarray, source: np.ndarray, count: np.ndarray, target: np.ndarray
) -> None:
    """Mark in `steps` what of the spans lies in the stretches that `_ranges` copies."""
    first = np.searchsorted(spans[:, 1], source, "right")
    found = np.maximum(0, np.searchsorted(spans[:, 0], source + count) - first)
    span, _ = _ranges(first, found, first)
    begin, end = (np.repeat(edge, found) for edge in (source, source + count))
    shift = np.repeat(target - source, found)
    np.add.at(steps, np.maximum(spans[span, 0], begin) + shift, 1)
    np.add.at(steps, np.minimum(spans[span, 1], end) + shift, -1)


def build(cache: dict[str, Any], tokens: dict[str, Any], out: Path) -> dict[str, Any]:
    """Build a cache folder and publish it by one rename; returns cache.json's content.

    cache: the plan's entry. tokens: {"prefix", "suffix": special token counts,
    "splits": {split: {"paths": token shards, "shards": source shard keys}},
    "provenance": what goes into cache.json as it is}.
    """
    prefix, suffix = tokens["prefix"], tokens["suffix"]
    max_length, packing = cache["max_length"], cache["packing"]
    splits, counts = {}, {}
    for split, part in tokens["splits"].items():
        documents = Documents(part["paths"])
        found, counts[split] = windows(documents, max_length, cache["overflow"], prefix + suffix)
        chosen = {split: np.ones(len(documents), bool)}
        if isinstance(cache["validation"], dict):
            fraction, seed = cache["validation"]["fraction"], cache["validation"]["seed"]
            kept = draw_validation(documents, part["shards"], fraction, seed)
            chosen = {"train": ~kept, "validation": kept} if fraction else chosen
        gather = Gatherer(documents, prefix, suffix)
        for name, mine in chosen.items():
            mine = found[mine[found.document]]
            splits[name] = (rows(mine, max_length, packing, prefix + suffix), gather)
    if not len(splits["train"][0]):
        raise UserError(
            f"{cache['model']}, {cache['dataset']}, {max_length}: no document is left to train on "
            f"({counts}); with overflow: drop, max_length may be too small"
        )
    with published(out, folder=True) as folder:
        checksums: dict[Path, str] = {}
        made = {name: _write_split(folder / name, name, *split, cache, checksums)
                for name, split in splits.items()}  # fmt: skip
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
        if not sum(split["tokens_trained"] for split in made.values()):
            raise UserError(
                f"{cache['model']}, {cache['dataset']}, {max_length}: the loss mask leaves no "
                "token to train on; look at loss: and document: of the data set"
            )
        summary = {
            **tokens["provenance"],
            "key": cache["key"],
            "documents": {split: count for split, count in counts.items()},
            "splits": made,
            "files": _files(folder, checksums),
        }
        text = json.dumps(summary, sort_keys=True, indent=1, ensure_ascii=False)
        (folder / "cache.json").write_text(text + "\n", encoding="utf-8")
    return summary


def _files(folder: Path, checksums: dict[Path, str]) -> dict[str, dict[str, Any]]:
    """Sizes and checksums of all files, of which those are read that are in none yet."""
    return {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "blake3": checksums.get(path) or hash_file(path),
        }
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    }


def _write_split(
    folder: Path, name: str, found: Rows, gather: Gatherer, cache: dict[str, Any],
    checksums: dict[Path, str],
) -> dict[str, Any]:  # fmt: skip
    """Write one split as `datasets` saves it: Arrow streams, state.json, dataset_info.json.

    The checksums of the Arrow files are added to `checksums`.
    """
    folder.mkdir()
    lengths = found.windows.content + gather.prefix + gather.suffix
    per_row = np.add.reduceat(lengths, found.first[:-1]) if len(found) else lengths[:0]
    total = int(lengths.sum())
    parts = _parts(per_row, TOKENS_IN_A_FILE)
    schema = _schema(gather.documents.dtype, found.packed)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    trained = untrained_rows = 0
    label = f"pack {cache['model']} {cache['dataset']} {cache['max_length']} {name}"
    with Progress(len(found), "rows", label) as progress:
        for file, (start, stop) in zip(names, parts, strict=True):
            with Writer(folder / file, schema, stream=True) as writer:
                for at, until in _batches(per_row, start, stop):
                    batch, in_rows = _batch(found, at, until, gather, schema)
                    writer.write(batch)
                    trained += int(in_rows.sum())
                    untrained_rows += int((in_rows == 0).sum())
                    progress.update(until - at)
            checksums[folder / file] = writer.checksum()
    info = {"features": _features(schema), "citation": "", "description": "", "homepage": "",
            "license": ""}  # fmt: skip
    state = {
        "_data_files": [{"filename": file} for file in names],
        "_fingerprint": key_of([cache["key"], name])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2, sort_keys=True))
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
    return {
        "rows": len(found),
        "windows": len(found.windows.document),
        "tokens": total,
        "tokens_trained": trained,
        "rows_without_trained_tokens": untrained_rows,
        "filled": round(total / max(1, len(found) * cache["max_length"]), 6),
    }


def _parts(per_row: np.ndarray, tokens: int) -> list[tuple[int, int]]:
    """Row ranges that are all rows: a new one where another multiple of `tokens` is passed."""
    number = np.maximum(0, np.cumsum(per_row) - 1) // tokens
    starts = np.flatnonzero(np.diff(number, prepend=-1)) if len(per_row) else np.zeros(1, int)
    stops = [*starts[1:], len(per_row)]
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]


def _batches(per_row: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Row ranges of a data file's record batches."""
    for first, last in _parts(per_row[start:stop], TOKENS_IN_A_BATCH):
        for at in range(start + first, start + last, ROWS_IN_A_BATCH):
            yield at, min(start + last, at + ROWS_IN_A_BATCH)


def _batch(
    found: Rows, start: int, stop: int, gather: Gatherer, schema: pa.Schema
) -> tuple[pa.RecordBatch, np.ndarray]:
    """Rows start..stop as a record batch, and how many of each row's tokens are trained on."""
    first = found.first[start : stop + 1]
    ids, trained, lengths = gather(found.windows[np.arange(first[0], first[-1])])
    ends = np.cumsum(lengths)
    if found.packed:
        # A document's first token is predicted from the one before it, which is another's.
        trained[ends - lengths] = False
    row_of_window = first - first[0]
    offsets = np.concatenate([[0], ends])[row_of_window].astype(np.int32)
    labels = np.where(trained, ids.astype(np.int32), np.int32(IGNORED))
    columns = {"input_ids": _lists(offsets, ids), "labels": _lists(offsets, labels)}
    if found.packed:
        positions = np.arange(len(ids), dtype=np.int32)
        positions -= np.repeat(ends - lengths, lengths).astype(np.int32)
        columns["position_ids"] = _lists(offsets, positions)
        columns["seq_lengths"] = _lists(row_of_window.astype(np.int32), lengths.astype(np.int32))
    counted = np.zeros(len(trained) + 1, np.int32)
    np.cumsum(trained, dtype=np.int32, out=counted[1:])
    in_rows = np.diff(counted[offsets])
    return pa.record_batch([columns[n] for n in schema.names], schema=schema), in_rows


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(as_arrow(offsets), as_arrow(values))


def _schema(ids: np.dtype, packed: bool) -> pa.Schema:
    names = ["input_ids", "labels"] + (["position_ids", "seq_lengths"] if packed else [])
    types = {"input_ids": pa.from_numpy_dtype(ids)}
    schema = pa.schema([(name, pa.list_(types.get(name, pa.int32()))) for name in names])
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
