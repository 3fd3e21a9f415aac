"""JSON files: the same bytes for the same value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .publish import published


def read_json(path: str | Path) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def write_json(path: str | Path, value: Any) -> None:
    """Publish a JSON file: sorted keys, one line an entry, the same bytes for the same value."""
    with published(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """A value as `write_json` writes it."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
