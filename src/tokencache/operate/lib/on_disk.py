"""Every cache in a cache folder, whatever configuration made it, and which of them are meant."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base import marks
from ...base.json_files import read_json
from ...base.publish import size_of
from ...base.records import CACHE_FILE, RUN_FILE
from ...errors import UserError
from ...plan import inventory


@dataclass(frozen=True)
class Cache:
    """A cache that is there, of either format.

    name: MODEL/DATASET/MAX_LENGTH-KEY. about: cache.json without its sources; empty where it
    can't be read. made, used: seconds since 1970; used is None where nobody is known to have
    read it. bytes: of its own files.
    """

    folder: Path
    about: dict[str, Any]
    made: float
    used: float | None
    pinned: bool
    bytes: int

    @property
    def name(self) -> str:
        return "/".join(self.folder.parts[-3:])

    @property
    def model(self) -> str:
        return self.folder.parts[-3]

    @property
    def dataset(self) -> str:
        return self.folder.parts[-2]

    @property
    def max_length(self) -> int:
        return int(self.folder.name.partition("-")[0])

    @property
    def format(self) -> str | None:
        return self.about["settings"].get("format", "dataset") if self.about else None

    @property
    def documents(self) -> int | None:
        if not self.about:
            return None
        return sum(counts["documents"] for counts in self.about["documents"].values())

    @property
    def tokens(self) -> int | None:
        if not self.about:
            return None
        return sum(split["tokens"] for split in self.about["splits"].values())


def caches(cache: str | Path) -> list[Cache]:
    """All caches below a cache folder, by name. Raises UserError where there is no such folder."""
    if not Path(cache).is_dir():
        raise UserError(f"there is no cache folder {cache}; nothing was made yet")
    found = (_cache(folder) for folder in inventory.cache_folders(cache))
    return [cache for cache in found if cache is not None]


def _cache(folder: Path) -> Cache | None:
    """None for one that is deleted meanwhile."""
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        about = inventory.brief(folder, inventory.NEEDED)
    try:
        if about:
            file = (folder / CACHE_FILE).stat()
            made, size = file.st_mtime, file.st_size
            size += sum(entry["bytes"] for entry in about["files"].values())
        else:
            made, size = folder.stat().st_mtime, size_of(folder)
    except OSError:
        return None
    return Cache(folder, about, made, marks.last_used(folder), marks.is_pinned(folder), size)


def chosen(found: list[Cache], names: Sequence[str], cache: str | Path) -> list[Cache]:
    """The caches that are meant: MODEL, MODEL/DATASET, MODEL/DATASET/MAX_LENGTH or with a key.

    A key may be cut short, each part may have * and ? in it, and a path into the cache folder
    means what it is there. Raises UserError for a name that means none.
    """
    meant: dict[str, Cache] = {}
    for name in names:
        parts = _parts(name, Path(cache))
        these = {one.name: one for one in found if _is_meant(one, parts)}
        if not these:
            raise UserError(
                f"no cache in {cache} is called {name!r}; `tokencache list` shows what there is"
            )
        meant |= these
    return [one for one in found if one.name in meant]


def _parts(name: str, cache: Path) -> list[str]:
    path = Path(name)
    for root in (cache, cache.absolute(), cache.resolve()):
        if path.is_relative_to(root):
            path = path.relative_to(root)
            break
    parts = list(path.parts)
    if not 1 <= len(parts) <= 3 or path.is_absolute():
        raise UserError(
            f"{name!r} names no cache in {cache}; give MODEL, MODEL/DATASET or "
            "MODEL/DATASET/MAX_LENGTH-KEY"
        )
    return parts


def _is_meant(cache: Cache, parts: list[str]) -> bool:
    *above, last = parts
    if len(parts) < 3:
        above, last = parts, "*"
    there = (cache.model, cache.dataset)
    if not all(fnmatch.fnmatchcase(*pair) for pair in zip(there, above, strict=False)):
        return False
    end = "*" if "-" in last else "-*"
    return any(fnmatch.fnmatchcase(cache.folder.name, last + more) for more in ("", end))


def runs_by_cache(found: list[Cache], results: str | Path | None) -> dict[str, list[str]]:
    """By the name of a cache, the folders of the finished runs that were trained on its rows."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for folder in inventory.run_folders(results) if results else ():
        with suppress(OSError, ValueError, KeyError, TypeError):
            made_of = read_json(folder / RUN_FILE)["made_of"]
            rows.setdefault((*folder.parts[-3:-1], made_of["cache"]), []).append(str(folder))
    users = {(model, dataset) for model, dataset, _ in rows}
    return {
        cache.name: rows.get((cache.model, cache.dataset, _rows_key(cache)), [])
        for cache in found
        if cache.about and (cache.model, cache.dataset) in users
    }


def _rows_key(cache: Cache) -> str:
    """See inventory.rows_key: of a view of an earlier version it follows from all shards."""
    if cache.format == "dataset":
        return cache.about["key"]
    try:
        told = "rows_key" in cache.about
        about = cache.about if told else read_json(cache.folder / CACHE_FILE)
        return inventory.rows_key(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # gone, or damaged
        return ""
