"""What a job does: look its entry up in the plan, call the stage, leave a target behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import config, documents, fetch, pack, tokenize, tokenizers, train, train_tokenizer
from .plan import Plan, checkpoints_path
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
        "provenance": plan.provenance(path),
    }
    pack.build(cache, tokens, Path(path))


def train_run(plan: Plan, path: str) -> None:
    run = plan.runs[path]
    train.train(run, Path(path), checkpoints_path(path))
