"""`tokencache pin …`: keep a cache from `gc` and `clear`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..base import marks
from ..base.tables import show_json
from ..errors import UserError
from .lib.experiment import add_folder_words, cache_of, config_of, folders_of
from .lib.on_disk import Cache, caches, chosen


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [options] MODEL DATASET MAX_LENGTH | NAME…"
    text = "the cache that config.yaml means, or names and paths as `tokencache list` takes them"
    parser.add_argument("name", nargs="+", help=text)
    add_folder_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the name of each. Raises UserError for one that is not there or not to be marked."""
    mark(arguments, marks.pin, "pinned")


def mark(arguments: argparse.Namespace, change: Callable[[Path], None], said: str) -> None:
    meant = _meant(arguments)
    for one in meant:
        try:
            change(one.folder)
        except OSError as error:
            raise UserError(f"{one.folder}: this can't be {said}: {error.strerror}") from None
    if arguments.json:
        show_json([one.name for one in meant])
    else:
        print("".join(f"{said}: {one.name}\n" for one in meant), end="")


def _meant(arguments: argparse.Namespace) -> list[Cache]:
    cache, _ = folders_of(arguments)
    names = arguments.name
    if len(names) == 3 and names[2].isdecimal():  # which no name of a model is
        names = [cache_of(config_of(arguments), names[0], names[1], int(names[2]))[1]]
    return chosen(caches(cache), names, cache)
