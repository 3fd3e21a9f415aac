"""`tokencache verify`: sizes and checksums of everything, and rows made again to compare."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ..base.progress import Progress
from ..base.tables import show, show_json
from ..config.schema import Config
from ..errors import UserError
from .lib import integrity, repair
from .lib.experiment import add_config_words, config_of
from .lib.integrity import Thing, Unchecked
from .lib.repair import Finding


def add_words(parser: argparse.ArgumentParser) -> None:
    text = "a cache's folder, or one above; default: all that is in the cache and results folders"
    parser.add_argument("caches", metavar="CACHE", nargs="*", type=Path, help=text)
    text = "make N random rows of each cache again with Hugging Face's tokenizer, and compare"
    parser.add_argument("--deep", metavar="N", type=_count, default=0, help=text)
    acts = parser.add_mutually_exclusive_group()
    text = "put what is damaged away, in the folder quarantine of the cache folder"
    acts.add_argument("--quarantine", action="store_true", help=text)
    text = "the same, and have snakemake make it again, and nothing else"
    acts.add_argument("--repair", action="store_true", help=text)
    text = "what snakemake is told with --repair (default: '--cores all')"
    parser.add_argument("--snakemake", metavar="WORDS", default="--cores all", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_words(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Say what is damaged; 1 where something is, and was not made again. Raises UserError."""
    config = config_of(arguments)
    things = _chosen(config, arguments.caches)
    found, unchecked = _checked(things)
    compared = _compared(config, things, arguments.deep, found) if arguments.deep else []
    if arguments.quarantine or arguments.repair:
        uses = repair.Uses(config)
        repair.quarantine(found, config.cache)
    if arguments.repair and found:
        files = [file.absolute() for file in arguments.configfile or [Path("config.yaml")]]
        repair.rebuild(found, config, files, uses, shlex.split(arguments.snakemake))
    (_print_json if arguments.json else _print)(things, found, unchecked, compared)
    if any(not one.repaired for one in found):
        return 1
    return 0


def _chosen(config: Config, wanted: list[Path]) -> list[Thing]:
    """What is looked at: everything, or some caches with what they are made of."""
    things = list(integrity.everything(config.cache, config.results))
    if not wanted:
        return things
    chosen: dict[Path, None] = {}
    for path in wanted:
        there = {one.path for one in things if one.kind == "cache"}
        some = [c for c in there if path.resolve() in (c.resolve(), *c.resolve().parents)]
        if not some:
            raise UserError(f"{path}: there is no cache; {config.cache}/MODEL/DATASET has them")
        chosen |= dict.fromkeys(some)
    names = repair.made_of(chosen, config.cache)
    return [one for one in things if one.path in chosen or one.path.stem in names]


def _checked(things: list[Thing]) -> tuple[list[Finding], list[tuple[Thing, str]]]:
    """What is damaged or missing, and what can't be checked."""
    found: list[Finding] = []
    unchecked: list[tuple[Thing, str]] = []
    with Progress(sum(one.bytes for one in things), "bytes", "verify") as progress:
        for one in things:
            state, wrong = one.state(), []
            end = progress.done + one.bytes
            try:
                wrong = integrity.confirmed(one, progress.update)
            except Unchecked as why:
                unchecked.append((one, str(why)))
            progress.update(max(0, end - progress.done))
            if wrong:
                found.append(Finding(one, "; ".join(wrong), state))
    return [*found, *_of_views(things, {one.thing.path for one in found})], unchecked


def _of_views(things: list[Thing], damaged: set[Path]) -> list[Finding]:
    """What is wrong with views, and with token shards that they need and that are missing."""
    found, lost = [], {}
    real = {os.path.realpath(path) for path in damaged}
    for one in things:
        if one.kind == "cache" and one.path not in damaged:
            wrong, missing = integrity.of_view(one.path, real)
            if wrong:
                found.append(Finding(one, "; ".join(wrong), one.state()))
            lost |= dict.fromkeys(map(_plain, missing))
    shards = (Thing("token shard", path, 0) for path in lost)
    return [*found, *(Finding(shard, "it is missing, and a view needs it") for shard in shards)]


def _plain(path: Path) -> Path:
    """As the cache folder's paths are written, where that can be."""
    inside = path.is_relative_to(Path.cwd())
    return path.relative_to(Path.cwd()) if inside else path


def _compared(config: Config, things: list[Thing], count: int, found: list[Finding]) -> list[Any]:
    """Rows made again, of caches whose bytes are as they were written; adds to what was found."""
    import numpy as np

    from .lib.deep import compare

    damaged, draw = {one.thing.path for one in found}, np.random.default_rng()
    folders = [one.path for one in things if one.kind == "cache" and one.path not in damaged]
    made = [compare(config, folder, count, draw, damaged) for folder in folders]
    wrong: dict[Path, list[str]] = {}
    for paths, problem in (differing for one in made for differing in one.differing):
        for path in paths:
            wrong.setdefault(path, []).append(problem)
    for path, problems in wrong.items():
        thing = integrity.thing("cache" if path in folders else "token shard", path)
        more = f" (and {len(problems) - 1} more rows)" if problems[1:] else ""
        found.append(Finding(thing, problems[0] + more, thing.state(), by_rows=True))
    return made


# What is said


def _print_json(
    things: list[Thing], found: list[Finding], unchecked: list[tuple[Thing, str]], compared: list
) -> None:
    about = {
        "checked": dict(Counter(one.kind for one in things)),
        "bytes": sum(one.bytes for one in things),
        "damaged": [one.json() for one in found],
        "unchecked": [
            {"kind": one.kind, "path": str(one.path), "why": why} for one, why in unchecked
        ],
        "compared": [
            {
                "cache": one.cache,
                "rows": one.rows,
                "same": one.same,
                "differing": [problem for _, problem in one.differing],
                "not_compared": dict(one.not_compared),
            }
            for one in compared
        ],
    }
    show_json(about)


def _print(
    things: list[Thing], found: list[Finding], unchecked: list[tuple[Thing, str]], compared: list
) -> None:
    if found:
        rows = [(one.thing.kind, str(one.thing.path), one.problem, one.fate) for one in found]
        done = any(one.fate for one in found)
        columns = ["damaged", "path", "what is wrong", "what was done"]
        show(columns if done else columns[:3], rows if done else [row[:3] for row in rows])
    for one in compared:
        _say_compared(one)
    for why, count in Counter(why for _, why in unchecked).items():
        some = [str(one.path) for one, said in unchecked if said == why]
        print(f"not checked: {count} ({why}): {some[0]}{', …' if some[1:] else ''}")
    kinds = Counter(one.kind for one in things)
    plural = (f"{n:,} {kind}{'' if n == 1 else 's'}" for kind, n in kinds.items())
    size = sum(one.bytes for one in things) / 1e6
    print(f"looked at {', '.join(plural) or 'nothing'}: {size:,.1f} MB; {_verdict(found)}")


def _say_compared(one: Any) -> None:
    print(f"{one.cache}: {one.same:,} of {one.rows:,} rows are what Hugging Face's tokenizer makes")
    for why, count in one.not_compared.items():
        print(f"  {count:,} could not be compared: {why}")
    for _, problem in one.differing:
        print(f"  differs: {problem}", file=sys.stderr)


def _verdict(found: list[Finding]) -> str:
    left = sum(not one.repaired for one in found)
    if not found:
        return "nothing is damaged"
    if not left:
        return f"{len(found):,} damaged, all made again"
    more = "" if any(one.fate for one in found) else "; --repair makes them again"
    return f"{left:,} damaged{more}"
