"""What a job does: look its entry up in the plan, call the stage, leave a target behind."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import config, documents, fetch, pack, tokenize, tokenizers, train, train_tokenizer
from .files import read_json
from .plan import Plan
from .sources import Piece, Source


def piece_of(shard: dict[str, Any]) -> tuple[Piece, str]:
    """The piece that a shard of the plan is, and the digest its bytes must have."""
    source = Source(shard["path"], shard["format"], shard["compression"], shard["sample_by"])
    if "fetched" in shard:
        return fetch.piece(shard["fetched"], source)
    return Piece(source, shard["start"], shard["stop"]), shard["key"]


def fetch_dataset(plan: Plan, folder: str) -> None:
    fetch.fetch(plan.fetches[folder], Path(folder))


def materialize_tokenizer(plan: Plan, folder: str) -> None:
    wanted = plan.tokenizers[folder]
    reference = config.Reference(**wanted["reference"])
    key = wanted["facts"]["key"]
    tokenizers.materialize(reference, Path(folder), key, wanted["trust_remote_code"])


def train_a_tokenizer(plan: Plan, folder: str) -> None:
    wanted = plan.tokenizers[folder]
    shards = [(plan.data["recipes"][r], plan.data["shards"][s]) for r, s in wanted["texts"]]
    total = sum(shard["bytes"] for _, shard in shards)

    def texts() -> Iterator:
        for recipe, shard in shards:
            for batch in documents.render(recipe, *piece_of(shard)):
                yield batch.texts

    key = wanted["facts"]["key"]
    train_tokenizer.train_tokenizer(wanted["training"], texts(), total, Path(folder), key)


def tokenize_batch(plan: Plan, name: str, engine: str = "auto") -> None:
    batch = plan.batches[name]
    work = []
    for key in batch["tokens"]:
        entry = plan.data["tokens"][key]
        piece, digest = piece_of(plan.data["shards"][entry["shard"]])
        recipe = plan.data["recipes"][entry["recipe"]]
        work.append((piece, digest, recipe, Path(plan.tokens_path(key)), key))
    tokenize.tokenize_batch(work, Path(batch["tokenizer"]), f"tokenize {name}", engine)


def pack_cache(plan: Plan, path: str) -> None:
    cache = plan.caches[path]
    token_set = plan.data["token_sets"][cache["token_set"]]
    recipe = plan.data["recipes"][token_set["recipe"]]
    facts = tokenizers.facts(Path(cache["tokenizer"]))
    specials = recipe["add_special_tokens"]
    tokens = {
        "prefix": len(facts.prefix) if specials else 0,
        "suffix": len(facts.suffix) if specials else 0,
        "splits": {
            split: {
                "paths": [plan.tokens_path(key) for key in keys],
                "shards": [plan.data["tokens"][key]["shard"] for key in keys],
            }
            for split, keys in token_set["splits"].items()
        },
        "provenance": provenance(plan, path),
    }
    pack.build(cache, tokens, Path(path))


def provenance(plan: Plan, path: str) -> dict[str, Any]:
    """Everything that a cache is made of, for cache.json; the same on every machine."""
    cache = plan.caches[path]
    token_set = plan.data["token_sets"][cache["token_set"]]
    names = ("version", "max_length", "overflow", "packing", "validation")
    return {
        "model": cache["model"],
        "dataset": cache["dataset"],
        "settings": {name: cache[name] for name in names},
        "tokenizer": plan.tokenizers[cache["tokenizer"]]["facts"],
        "recipe": plan.data["recipes"][token_set["recipe"]],
        "sources": sources_of(plan, token_set),
        "versions": {n: version(n) for n in ("tokencache", "tokenizers", "pyarrow", "numpy")},
        "command": f"snakemake {path}",
    }


def sources_of(plan: Plan, token_set: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By split: each file with its shards' keys and the keys of their token shards."""
    found: dict[str, list[dict[str, Any]]] = {}
    for split, keys in token_set["splits"].items():
        files: dict[str, dict[str, Any]] = {}
        for key in keys:
            shard = plan.data["shards"][plan.data["tokens"][key]["shard"]]
            file = files.setdefault(shard["path"], {"path": shard["path"], "shards": []})
            file["shards"].append({"key": shard["key"], "tokens": key, "bytes": shard["bytes"]})
        found[split] = list(files.values())
    return found


def train_run(plan: Plan, path: str) -> None:
    run = plan.runs[path]
    checkpoints = Path(path).parent / f".{Path(path).name}.checkpoints"
    train.train(run, Path(path), checkpoints)


def cache_json(path: str | Path) -> dict[str, Any]:
    return read_json(Path(path, "cache.json"))
