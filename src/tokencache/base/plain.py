"""Whether what a configuration holds is plain: words, numbers, lists and mappings, not too many."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import yaml

from ..errors import UserError

MOST_VALUES = 1_000_000
MOST_DEPTH = 50
LARGEST = 2**63 - 1
MOST_SHOWN = 200  # characters of a value in a message

TOO_MANY = (
    f"it has more than {MOST_VALUES:,} values, counting what an alias (*name) stands for each "
    "time; write less of them"
)
TOO_DEEP = f"its lists and mappings lie more than {MOST_DEPTH} deep in each other; flatten them"
ITSELF = "an alias (*name) stands within what it names; write out what you mean"


def shown(value: Any) -> str:
    """A value as a message names it."""
    return cut(repr(value))


def cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def check_node(root: yaml.Node) -> None:
    """Refuse YAML whose aliases stand for more than anybody means, before it is read.

    Raises UserError with the file and the line.
    """
    sizes: dict[int, int | None] = {}  # of nodes with all that is below; None: not known yet

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in sizes:
            found = sizes[id(node)]
            if found is None:
                raise _at(node, ITSELF)
            return found
        if depth > MOST_DEPTH:
            raise _at(node, TOO_DEEP)
        sizes[id(node)] = None
        found = 1 + sum(size(below, depth + 1) for below in _below(node))
        if found > MOST_VALUES:
            raise _at(node, TOO_MANY)
        sizes[id(node)] = found
        return found

    size(root, 0)


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key, "a key is one word or number, not a list or a mapping")
            yield value


def _at(node: yaml.Node, message: str) -> UserError:
    return UserError(f"{node.start_mark.name}:{node.start_mark.line + 1}: {message}")


def problems(value: Any) -> Iterator[tuple[tuple, str]]:
    """The key path of each value that JSON has not, and what is wrong with it.

    Ends with the first value that is one too many.
    """
    stack: list[tuple[tuple, Any]] = [((), value)]
    count = 0
    while stack:
        path, here = stack.pop()
        count += 1
        if count > MOST_VALUES:
            yield path, TOO_MANY
            return
        if len(path) > MOST_DEPTH:
            yield path[:3], TOO_DEEP
            return
        wrong = _wrong(here)
        if wrong:
            yield path, wrong
        elif isinstance(here, dict):
            stack += reversed([((*path, key), below) for key, below in here.items()])
        elif isinstance(here, list):
            stack += reversed([((*path, number), below) for number, below in enumerate(here)])


def _wrong(value: Any) -> str | None:
    if isinstance(value, str):
        return _wrong_text(value)
    if isinstance(value, datetime.date):
        return f"{value} is a date in YAML; put it in quotes to get the text"
    if isinstance(value, bytes):
        return "this is binary data; write it as text"
    if isinstance(value, set | frozenset | tuple):
        return "this is a set in YAML; write a list"
    if isinstance(value, dict):
        return _wrong_keys(value)
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return f"this number is too large; the largest is {LARGEST}"
    if value is None or isinstance(value, bool | int | float | list):
        return None
    return f"this is a {type(value).__name__}, not a word, a number, a list or a mapping"


def _wrong_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = f"\\u{ord(text[error.start]):04x}"
        return (
            f"{shown(text)} holds {character}, which is half of a character (or a byte that is "
            "not UTF-8); write the character itself, or \\U and its eight digits"
        )
    return None


def _wrong_keys(mapping: dict) -> str | None:
    for key in mapping:
        if wrong := None if isinstance(key, tuple) else _wrong(key):
            return f"as a key, {wrong}"
        if isinstance(key, tuple):
            return "a key is one word or number, not a list or a mapping"
    if len({isinstance(key, str) for key in mapping}) > 1 or (None in mapping and len(mapping) > 1):
        keys = shown(sorted(mapping, key=str))
        return f"its keys are words and numbers at once: {keys}; put the numbers in quotes"
    return None
