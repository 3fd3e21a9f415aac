"""`tokencache trace PATH`: what something was made of, and what was made of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.tree import Tree

from ..base.records import CACHE_FILE, KEY, PROVENANCE_FILE, RUN_FILE
from ..base.tables import console, show_json
from ..config.schema import Config
from .lib.experiment import add_config_words, config_of
from .lib.provenance import CHECKPOINTS, Node, Provenance

# What a tree says otherwise, or leaves to the JSON.
NOT_SHOWN = ("config", "plan", "shards", "key", "model", "dataset", "max_length", "split", "state",
             "source_was_called")  # fmt: skip


def add_words(parser: argparse.ArgumentParser) -> None:
    text = "a run, a checkpoint, a cache, a token shard, a tokenizer, or a source file"
    parser.add_argument("path", metavar="PATH", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON, which has all of it")
    add_config_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print a tree. Raises UserError for what nothing is known of."""
    config = config_of(arguments)
    node = trace(config, arguments.path)
    if arguments.json:
        show_json(node.json())
    else:
        console().print(_tree(node))


def trace(config: Config, path: str) -> Node:
    """What a path is, with what it was made of and what was made of it."""
    known = Provenance(config)
    place = Path(os.path.normpath(path))
    if place.is_absolute() and place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())  # as records tell paths
    for folder in [place, *place.parents]:
        if match := CHECKPOINTS.fullmatch(folder.name):
            return known.unfinished(folder.parent / match[1], str(place))
        if (folder / RUN_FILE).is_file():
            return known.run(folder)
        if (folder / CACHE_FILE).is_file():
            node = known.cache(folder)
            node.made = known.made_of_cache(str(folder))
            return node
    parts = place.relative_to(config.cache).parts if place.is_relative_to(config.cache) else ()
    match parts:
        case ("tokens", _, _, name):
            file = place.with_suffix(".arrow")
            return known.users_of("token shard", str(file), Path(name).stem)
        case ("tokenizers" | "sources" as kind, key, *_) if KEY.fullmatch(key):
            folder = str(Path(config.cache, kind, key))
            return known.users_of(kind.removesuffix("s"), folder, key)
    return known.source(str(place))


# What people read


def _tree(node: Node, root: bool = True) -> Tree:
    tree = Tree(_title(node))
    for name, text in _facts(node, root):
        tree.add(f"{name}: {text}")
    for below in node.made_of:
        tree.add(_tree(below, False))
    if node.made:
        made = tree.add("made of it:")
        for below in node.made:
            made.add(_tree(below, False))
    return tree


def _title(node: Node) -> str:
    about = [node.facts[name] for name in ("split", "state") if node.facts.get(name)]
    return f"{node.kind} {node.path}" + (f" ({', '.join(about)})" if about else "")


def _facts(node: Node, root: bool) -> Iterator[tuple[str, str]]:
    if root and "key" in node.facts:
        yield "key", node.facts["key"]
    for name, value in node.facts.items():
        if name not in NOT_SHOWN:
            yield name.replace("_", " "), _said(name, value)
    if "shards" in node.facts:
        shards = node.facts["shards"]
        paths = [path for shard in shards for path in shard["token_shards"]]
        there = sum(os.path.exists(path) for path in paths)
        yield "shards", f"{len(shards):,}; of {len(paths):,} token shards {there:,} are there"
    if node.facts.get("config"):
        where = node.facts.get("plan") or f"{node.path}/{PROVENANCE_FILE}"
        yield "configuration", f"all of it is the `config` of {where}"


def _said(name: str, value: Any) -> str:
    if name == "image":
        return " ".join(value.values()) if value else "none, it ran on the machine itself"
    if name == "token_shards":
        return f"{value['there']:,} of {value['of']:,} are there"
    if isinstance(value, dict):
        return ", ".join(f"{n} {v}" for n, v in _flat(value))
    return str(value)


def _flat(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner)
        elif inner is not None:
            yield name, inner
