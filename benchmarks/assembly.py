"""From token shards to a cache: `tokencache pack` as a whole process, and packing alone.

    python benchmarks/assembly.py --tokens 100000000

makes token shards of random ids, and a line for each kind of cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import pyarrow as pa

from tokencache.caches.best_fit import best_fit_decreasing

TOKENS_IN_A_SHARD = 2**24  # about what 64 MiB of text come to
TOKENS_IN_A_BATCH = 2**22
MAX_LENGTH = 2048
SPECIALS = {"prefix": [1], "suffix": [2]}


def lengths(count: int, random: np.random.Generator) -> np.ndarray:
    """Of documents: many short ones and few very long ones, 300 tokens on average."""
    return np.maximum(4, random.lognormal(5.1, 1.1, count)).astype(np.int64)


def make_shards(folder: Path, tokens: int, masked: bool, ids_below: int = 50_000) -> list[str]:
    """Token shards as the tokenize stage writes them; their names in the folder."""
    random = np.random.default_rng(1)
    schema = pa.schema([("input_ids", pa.large_list(pa.uint16())), ("row_hash", pa.uint64())])
    if masked:
        schema = schema.append(pa.field("loss_spans", pa.large_list(pa.int32())))
    names = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-tokens // TOKENS_IN_A_SHARD)):
        path = folder / f"{number:032d}.arrow"
        names.append(path.stem)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for _ in range(TOKENS_IN_A_SHARD // TOKENS_IN_A_BATCH):
                found = lengths(TOKENS_IN_A_BATCH // 300, random)
                offsets = np.concatenate([[0], np.cumsum(found)])
                ids = random.integers(3, ids_below, offsets[-1], np.uint16)
                hashes = pa.array(random.integers(0, 2**64, len(found), np.uint64))
                columns = [pa.LargeListArray.from_arrays(offsets, ids), hashes]
                if masked:
                    spans = np.stack([found // 2, found], 1).astype(np.int32).ravel()
                    places = np.arange(len(found) + 1) * 2
                    columns.append(pa.LargeListArray.from_arrays(places, spans))
                writer.write_batch(pa.record_batch(columns, schema=schema))
    return names


def make_plan(folder: Path, names: list[str], caches: dict[str, dict[str, Any]]) -> Path:
    """A plan file of some caches over the shards, of which pack needs no more than this."""
    facts = SPECIALS | {"key": "t" * 32}
    common = {"model": "m", "dataset": "d", "max_length": MAX_LENGTH, "version": 1, "parts": 1,
              "token_set": "set", "tokenizer": "cache/tokenizers/t",
              "validation": {"fraction": 0.05, "seed": 42}}  # fmt: skip
    data = {
        "id": "plan",
        "config": {"cache": "cache", "results": "results", "shard_size": 2**26},
        "shards": {n: {"key": n, "path": "data.jsonl", "bytes": 2**26} for n in names},
        "recipes": {"r": {"add_special_tokens": True}},
        "tokens": {n: {"tokenizer": facts["key"], "recipe": "r", "shard": n} for n in names},
        "token_sets": {"set": {"tokenizer": facts["key"], "recipe": "r", "dataset": "d",
                               "splits": {"train": names}}},
        "tokenizers": {"cache/tokenizers/t": {"facts": facts}},
        "fetches": {}, "runs": {}, "batches": {},
        "caches": {path: common | cache | {"key": path} for path, cache in caches.items()},
    }  # fmt: skip
    path = folder / "plan.json"
    path.write_text(json.dumps(data))
    return path


def kinds() -> dict[str, dict[str, Any]]:
    return {
        f"cache/m/d/{format}-{packing}-{overflow}": {
            "overflow": overflow, "packing": packing, "format": format,
        }
        for format in ("dataset", "view")
        for packing in ("none", "best_fit")
        for overflow in ("truncate", "split")
    }  # fmt: skip


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("--tokens", type=int, default=100_000_000)
    words.add_argument("--masked", action="store_true", help="half of each document in the loss")
    words.add_argument("--rounds", type=int, default=1)
    words.add_argument("--folder", type=Path, default=Path(__file__).parent / "data" / "assembly")
    chosen = words.parse_args()
    random = np.random.default_rng(1)
    million = np.minimum(lengths(1_000_000, random), MAX_LENGTH)
    seconds = []
    for _ in range(chosen.rounds):
        started = time.perf_counter()
        bins = best_fit_decreasing(million, MAX_LENGTH)
        seconds.append(time.perf_counter() - started)
    print(f"best fit, 1,000,000 documents into {bins.max() + 1:,} rows: {median(seconds):.3f} s")
    folder = chosen.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    shards = folder / "cache" / "tokens" / ("t" * 32) / "00"
    plan = make_plan(folder, make_shards(shards, chosen.tokens, chosen.masked), kinds())
    for path in kinds():
        command = [sys.executable, "-m", "tokencache", "pack", "--plan", str(plan), path]
        times = []
        for _ in range(chosen.rounds):
            shutil.rmtree(folder / path, ignore_errors=True)
            times.append(measure.run(command, folder, folder / "log"))
        made = json.loads((folder / path / "cache.json").read_text())
        tokens = sum(split["tokens"] for split in made["splits"].values())
        size = sum(file["bytes"] for file in made["files"].values())
        print(
            f"{Path(path).name:30} {tokens:,} tokens, {size / 1e6:,.1f} MB: "
            f"{median(t['seconds'] for t in times):.2f} s, "
            f"of processors {median(t['cpu_seconds'] for t in times):.2f} s, "
            f"peak {max(t['peak_bytes'] for t in times) / 1e6:,.0f} MB"
        )
        shutil.rmtree(folder / path)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
