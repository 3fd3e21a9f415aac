"""What a job does: look its target up in the plan, call the stage, leave the target behind.

Each stage is imported by its own job alone: a job that packs does not wait for torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..base.json_files import read_json
from ..errors import UserError
from ..plan.plan import Plan, checkpoints_path, parts_path
from ..sources.source import Piece, Source


def piece_of(shard: dict[str, Any]) -> tuple[Piece, str]:
    """The piece that a shard of the plan is, and the digest its bytes must have."""
    source = Source(shard["path"], shard["format"], shard["compression"], shard["sample_by"])
    if "fetched" in shard:
        from ..sources import hub

        return hub.piece(shard["fetched"], source)
    return Piece(source, shard["start"], shard["stop"]), shard["key"]


def fetch_from_hub(plan: Plan, folder: str) -> None:
    from ..sources import hub

    wanted = plan.fetches[folder]
    (hub.fetch_weights if "model" in wanted else hub.fetch)(wanted, Path(folder))


# Of each shard that a tokenizer's saved files are compared on.
COMPARED_DOCUMENTS, COMPARED_CHARACTERS = 100, 4096


def materialize_tokenizer(plan: Plan, folder: str) -> None:
    from ..config.references import Reference
    from ..tokenizer import given as tokenizers

    wanted = plan.tokenizers[folder]
    key = wanted["facts"]["key"]
    reference = Reference(**wanted["reference"])
    texts = _some_texts(plan, folder)
    tokenizers.materialize(reference, Path(folder), key, wanted["trust_remote_code"], texts)


def _some_texts(plan: Plan, tokenizer: str) -> list[str]:
    """A few documents that the tokenizer in a folder will encode."""
    from ..documents import render

    texts: list[str] = []
    for key in plan.compared_tokens(tokenizer):
        recipe = plan.data["recipes"][plan.data["tokens"][key]["recipe"]]
        try:
            batch = next(render.render(recipe, *piece_of(plan.shard_of(key))), None)
        except UserError:
            continue  # tokenization says it
        if batch is not None:
            found = batch.texts.slice(0, COMPARED_DOCUMENTS).to_pylist()
            texts += [text[:COMPARED_CHARACTERS] for text in found]
    return texts


def train_a_tokenizer(plan: Plan, folder: str) -> None:
    from ..documents import render
    from ..tokenizer.trained import train_tokenizer

    wanted = plan.tokenizers[folder]
    shards = [(plan.data["recipes"][r], plan.data["shards"][s]) for r, s in wanted["texts"]]
    total = sum(shard["bytes"] or 0 for _, shard in shards)

    def texts() -> Iterator:
        for recipe, shard in shards:
            for batch in render.render(recipe, *piece_of(shard)):
                yield batch.texts

    try:
        train_tokenizer(wanted["training"], texts(), total, Path(folder), wanted["facts"]["key"])
    except UserError as error:
        raise UserError(f"tokenizers.{wanted['name']}: {error}") from None


def tokenize_batch(plan: Plan, name: str) -> None:
    from ..tokens import write

    batch = plan.batches[name]
    work = []
    for key in batch["tokens"]:
        piece, digest = piece_of(plan.shard_of(key))
        recipe = plan.data["recipes"][plan.data["tokens"][key]["recipe"]]
        work.append((piece, digest, recipe, Path(plan.tokens_path(key)), key))
    write.tokenize_batch(
        work, Path(batch["tokenizer"]), f"tokenize {name}", plan.data["config"]["engine"]
    )


def pack_cache(plan: Plan, path: str) -> None:
    from ..caches import dataset

    parts = [Path(part) for part in plan.parts_of(path)]
    dataset.build(plan.caches[path], _tokens_of(plan, path), Path(path), parts)
    # Not what another workflow is writing there: its job would fail.
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    if parts:
        with suppress(OSError):
            parts_path(path).rmdir()


def look_at_cache(plan: Plan, path: str) -> dict[str, Any]:
    """The data report of a cache, made anew from its token shards."""
    from ..caches import dataset

    return dataset.look(plan.caches[path], _tokens_of(plan, path))


def pack_part(plan: Plan, path: str) -> None:
    from ..caches import dataset

    cache = plan.cache_of(path)
    entry, parts = plan.caches[cache], plan.parts_of(cache)
    if path not in parts:
        raise KeyError(path)
    number = parts.index(path)
    dataset.build_part(entry, _tokens_of(plan, cache), Path(path), number, len(parts))


def _tokens_of(plan: Plan, path: str) -> dict[str, Any]:
    """What a cache's rows are made of."""
    cache = plan.caches[path]
    sets = [plan.token_sets[key] for key in plan.sets_of(cache)]
    recipe = plan.data["recipes"][sets[0]["recipe"]]
    facts = plan.tokenizers[cache["tokenizer"]]["facts"]
    specials = recipe["add_special_tokens"]
    made_of = {
        "prefix": len(facts["prefix"]) if specials else 0,
        "suffix": len(facts["suffix"]) if specials else 0,
        "splits": _token_shards(plan, sets[0]),
        "provenance": plan.provenance(path),
        "tokenizer": cache["tokenizer"],
        "vocabulary": _vocabulary(plan, path),
    }
    return made_of | ({"targets": _token_shards(plan, sets[1])} if sets[1:] else {})


def _vocabulary(plan: Plan, path: str) -> dict[str, Any] | None:
    """How many tokens the model of a cache knows, what says so, and what to do if it is too few.

    None where no model is named, and where its weights are yet to be fetched.
    """
    run = next((run for run in plan.runs.values() if run["cache"] == path), None)
    if run is None:
        return None
    key = f"models.{run['model']}"
    if run["weights"] is None:
        given, where = run["architecture"], f"{key}.architecture.vocab_size"
        advice = "leave vocab_size out to get the tokenizer's"
    else:
        try:
            given = read_json(Path(run["weights_folder"], "config.json"))
        except (OSError, ValueError):
            return None
        given, where = given.get("text_config") or given, f"{key}.weights"
        advice = (
            f"give {key}.tokenizer the tokenizer of these weights, or weights whose embedding was "
            "resized"
        )
    size = given.get("vocab_size")
    return {"size": size, "where": where, "advice": advice} if isinstance(size, int) else None


def _token_shards(plan: Plan, token_set: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Of each split, the paths of the token shards."""
    splits = token_set["splits"].items()
    return {name: {"paths": [plan.tokens_path(key) for key in keys]} for name, keys in splits}


def train_run(plan: Plan, path: str) -> None:
    from ..training import run as train

    run = plan.runs[path] | {"config": plan.data["config"]}
    train.train(run, Path(path), checkpoints_path(path))
