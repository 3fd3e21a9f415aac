"""Nested values of Parquet and Arrow as JSON Lines would have them.

A struct has the same fields in every row: one that a row doesn't have is null there. JSON
has no such key, and a chat template or a tool's schema is another one with it. What was null
in the JSON that the file was made from can't be told apart, so null fields are left out at
every depth; null elements of lists stay. A map is an object, not a list of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

Change = Callable[[Any], Any]


def as_json(kind: pa.DataType) -> Change | None:
    """What makes a value that pyarrow gives for this type one of JSON; None if it is one."""
    if pa.types.is_dictionary(kind):
        return as_json(kind.value_type)
    if pa.types.is_struct(kind):
        return _struct({field.name: as_json(field.type) for field in kind})
    if pa.types.is_map(kind):
        return _map(as_json(kind.item_type))
    lists = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    if any(test(kind) for test in lists) and (inner := as_json(kind.value_type)):
        return _list(inner)
    return None


def _struct(changes: dict[str, Change | None]) -> Change:
    def change(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {
            name: inner(item) if (inner := changes[name]) else item
            for name, item in value.items()
            if item is not None
        }

    return change


def _map(inner: Change | None) -> Change:
    def change(value: list[tuple[Any, Any]] | None) -> dict[Any, Any] | None:
        if value is None:
            return None
        return {name: inner(item) if inner else item for name, item in value}

    return change


def _list(inner: Change) -> Change:
    def change(value: list[Any] | None) -> list[Any] | None:
        return None if value is None else [inner(item) for item in value]

    return change
