"""The mapping that files of a configuration make, laid over each other, before it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .messages import check_files, unknown


def _overlay(base: Any, over: Any) -> Any:
    """`over` laid on `base`, mappings merged key by key."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _overlay(base.get(key), value) for key, value in over.items()}
    return over


def read(files: list[str | Path]) -> dict[str, Any]:
    """The mapping of some YAML files, later ones laid over earlier ones, as Snakemake does it."""
    check_files(files)
    raw: dict[str, Any] = {}
    for file in files:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise UserError(f"{file}: this has no keys at its top level")
        raw = _overlay(raw, found)
    return raw


def sized(raw: dict[str, Any]) -> dict[str, Any]:
    """Lay the chosen size's keys over the rest: `size: full` takes `sizes: {full: …}`."""
    raw = dict(raw)
    size, sizes = raw.pop("size", None), raw.pop("sizes", None) or {}
    if size is None:
        return raw
    if not isinstance(sizes, dict) or not isinstance(size, str):
        raise UserError("size: give a name, and under sizes a section of that name")
    if size not in sizes:
        raise UserError(f"size: {unknown(str(size), sizes, '', what='size')}")
    return _overlay(raw, sizes[size] or {})
