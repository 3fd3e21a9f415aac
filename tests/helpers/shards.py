"""Token shards made by hand, and caches of them by a few lines of plain Python."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
from datasets import load_from_disk

from tokencache.caches import dataset

IGNORED = -100

# A document: its ids, special tokens included, and which of them are trained on.
Document = tuple[list[int], list[bool]]


def runs(mask: list[bool]) -> list[int]:
    """[start, stop, …] of what is true."""
    edges = [False, *mask, False]
    return [n for n in range(len(mask) + 1) if edges[n] != edges[n + 1]]


def write_shard(path: Path, documents: list[Document], masked=False, ids="uint16", batch=3) -> str:
    """A token shard of some documents, `batch` of them in a record batch."""
    columns = {"input_ids": pa.large_list(pa.type_for_alias(ids)), "row_hash": pa.uint64()}
    if masked:
        columns["loss_spans"] = pa.large_list(pa.int32())
    schema = pa.schema(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(documents), batch):
            part = documents[start : start + batch]
            arrays = [pa.array([d for d, _ in part], columns["input_ids"]), row_hashes(part)]
            if masked:
                arrays.append(pa.array([runs(mask) for _, mask in part], columns["loss_spans"]))
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return str(path)


def row_hashes(documents: list[Document]) -> pa.Array:
    """Equal ones of equal documents."""
    digests = (hashlib.sha256(json.dumps(ids).encode()).digest()[:8] for ids, _ in documents)
    return pa.array([int.from_bytes(digest, "little") for digest in digests], pa.uint64())


def entry(max_length, overflow="truncate", packing="none", validation=None, key="0" * 32):
    """The plan's entry of a cache."""
    return {
        "model": "model", "dataset": "data", "max_length": max_length, "overflow": overflow,
        "packing": packing, "validation": validation, "key": key,
    }  # fmt: skip


def tokens(splits: dict[str, list[str]], prefix=0, suffix=0, provenance=None):
    found = {name: {"paths": paths} for name, paths in splits.items()}
    return {
        "prefix": prefix, "suffix": suffix, "splits": found, "provenance": provenance or {},
    }  # fmt: skip


def build(out: Path, paths, wanted, prefix=0, suffix=0, provenance=None):
    """Build a cache; returns the DatasetDict that a user opens, and cache.json."""
    splits = paths if isinstance(paths, dict) else {"train": paths}
    made = dataset.build(wanted, tokens(splits, prefix, suffix, provenance), out)
    assert made == json.loads((out / "cache.json").read_text(encoding="utf-8"))
    return load_from_disk(str(out)), made


def naive_windows(documents: list[Document], wanted, prefix: int, suffix: int) -> list[tuple]:
    """(number of the document, its ids, its mask) of each window."""
    found = []
    most, side = wanted["max_length"], wanted.get("truncation_side", "right")
    for number, (ids, mask) in enumerate(documents):
        if len(ids) <= prefix + suffix or (wanted["overflow"] == "drop" and len(ids) > most):
            continue
        pairs = list(zip(ids, mask, strict=True))
        windows = [pairs]
        if wanted["overflow"] == "split":
            windows = [pairs[n : n + most] for n in range(0, len(pairs), most)]
            while len(windows[-1]) <= suffix and windows[1:]:
                windows[-1].insert(0, windows[-2].pop())
        elif len(ids) > most and side == "right":
            end = [(i, False) for i, _ in pairs[len(pairs) - suffix :]]
            windows = [pairs[: most - suffix] + end]
        elif len(ids) > most:
            begin, rest = pairs[:prefix], pairs[len(pairs) - (most - prefix) :]
            if prefix:
                begin, rest = begin + rest[:1], rest[1:]
            windows = [[(i, False) for i, _ in begin] + rest]
        found += [(number, [i for i, _ in row], [m for _, m in row]) for row in windows]
    return found


def labelled(ids: list[int], mask: list[bool]) -> list[int]:
    return [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
