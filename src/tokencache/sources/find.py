"""Data files found by paths, globs and folders, and how each is read by its name."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Collection
from functools import cached_property

from ..base.json_files import read_json
from ..base.publish import check_name
from ..base.records import CACHE_FILE, KEY, RUN_FILE, SHARED, TARGET
from ..errors import UserError, listed
from .source import Source

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".zstd": "zst"}
COLUMNAR = ("parquet", "arrow")

# In a folder that `datasets` saved, what says that its folders are the splits of one data set.
SPLITS_FILE = "dataset_dict.json"

# What `datasets` and this project write beside the data.
NO_DATA = ("dataset_info.json", SPLITS_FILE, "state.json", "fetched.json", "cache-*.arrow")


def find(
    patterns: list[str],
    key: str,
    format: str = "auto",
    sample_by: str = "line",
    split: str = "train",
    own: Collection[str] = (),
) -> list[list[Source]]:
    """The sources that each pattern means, in its order: a file, a glob, or a folder.

    A glob or a folder means all data files, those in its folders too, sorted by path,
    without hidden files. Of a DatasetDict that `datasets` saved, it means those of `split`,
    and of `own`, folders that this workflow writes to, none; of caches and runs of other
    configurations none either. A pattern that begins inside of these means what it says.
    Raises UserError that names the config key (`key`.number) where that is nothing, or
    nothing that can be read.
    """
    found = []
    resolved = {os.path.realpath(folder): folder for folder in own}
    for number, pattern in enumerate(patterns):
        where = f"{key}.{number}"
        pattern = os.path.expanduser(pattern)
        paths = _Finder(pattern, where, format, split, resolved).paths()
        found.append([_source(path, where, format, sample_by) for path in paths])
    return found


def check_once(found: dict[str, list[list[Source]]]) -> None:
    """Raises UserError where a file is found twice. found: what `find` gave for each key."""
    places: dict[str, str] = {}
    folders: dict[str, str] = {}
    for key, groups in found.items():
        for number, group in enumerate(groups):
            for source in group:
                folder, name = os.path.split(source.path)
                if folder not in folders:
                    folders[folder] = os.path.realpath(folder)
                before = places.setdefault(f"{folders[folder]}/{name}", f"{key}.{number}")
                if before != f"{key}.{number}":
                    raise UserError(
                        f"{key}.{number}: {source.path} is found by {before} already; take it out "
                        "of one of them"
                    )


class _Finder:
    """Finds the files that one pattern means; see `find`. own: as they are called, by their real
    paths."""

    def __init__(
        self, pattern: str, where: str, format: str, split: str, own: dict[str, str]
    ) -> None:
        self._pattern, self._where, self._format, self._split = pattern, where, format, split
        self._all_own = own
        self._left_out: dict[str, bool] = {}
        self._splits_in: dict[str, list[str]] = {}
        self._made: set[str] = set()  # the folders of the workflow's that were left out

    @cached_property
    def _root(self) -> str:
        return os.path.normpath(_root(self._pattern))

    @cached_property
    def _own(self) -> dict[str, str]:
        root = os.path.realpath(self._root)
        return {real: own for real, own in self._all_own.items() if not _is_below(root, real)}

    def paths(self) -> list[str]:
        pattern = self._pattern
        if os.path.isdir(pattern):
            paths = self._in_folder(pattern)
            if not paths and os.path.realpath(pattern) in self._own:
                raise UserError(
                    f"{self._where}: this workflow itself writes to the folder {pattern!r}; keep "
                    "the data in another one"
                )
            if not paths:
                raise UserError(
                    f"{self._where}: the folder {pattern!r} has no data files{self._besides()} "
                    f"({_known()}); for "
                    "files of other names set format:"
                )
            return paths
        if os.path.lexists(pattern):
            return [pattern]
        if not glob.has_magic(pattern):
            raise UserError(
                f"{self._where}: there is no file or folder {pattern!r}; correct the path"
            )
        paths = []
        for path in glob.glob(pattern, recursive=True):
            if os.path.isdir(path):
                paths += self._in_folder(path)
            elif _is_data(path) and not self._is_left_out(os.path.dirname(path)):
                paths.append(path)
        if not paths:
            raise UserError(
                f"{self._where}: nothing matches {pattern!r}{self._besides()}; correct the pattern"
            )
        return sorted({os.path.normpath(path) for path in paths})

    def _besides(self) -> str:
        if not self._made:
            return ""
        return f" outside of {listed(sorted(self._made))}, which this workflow writes to"

    def _in_folder(self, folder: str) -> list[str]:
        """All its data files; where the format is given, files of any suffix."""
        found, seen = [], set()
        for parent, folders, names in os.walk(folder, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen or self._is_left_out(parent):
                folders[:] = []
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            splits = _splits(parent) if SPLITS_FILE in names else []
            if splits and self._split not in splits:
                raise UserError(
                    f"{self._where}: {parent} is a data set that `datasets` saved, and has no "
                    f"split {self._split!r}; name the folder of one of its splits: "
                    f"{', '.join(splits)}"
                )
            paths = [os.path.join(parent, name) for name in names]
            known = [p for p in paths if self._format != "auto" or _named(p)[0]]
            found += [path for path in known if _is_data(path)]
        return sorted(os.path.normpath(path) for path in found)

    def _is_left_out(self, folder: str) -> bool:
        """Whether a folder lies in one of our own, or in another split of a saved data set."""
        folder = os.path.normpath(folder)
        if folder not in self._left_out:
            self._left_out[folder] = self._is_own(folder) or (
                folder not in (self._root, "", ".", os.sep) and self._is_other(folder)
            )
        return self._left_out[folder]

    def _is_own(self, folder: str) -> bool:
        real = os.path.realpath(folder)
        own = next((o for o in self._own if real == o or _is_below(real, o)), None)
        if own is not None:
            self._made.add(self._own[own])
        return own is not None

    def _is_other(self, folder: str) -> bool:
        above, name = os.path.split(folder)
        above = above or "."
        if _is_made(folder):
            self._made.add(folder)
            return True
        if above not in self._splits_in:
            self._splits_in[above] = _splits(above)
        other = name != self._split and name in self._splits_in[above]
        return other or self._is_left_out(above)


def _is_made(folder: str) -> bool:
    """Whether a folder below a pattern's is what a workflow made, of whatever configuration."""
    above, name = os.path.split(folder)
    if TARGET.fullmatch(name):
        return any(os.path.exists(os.path.join(folder, one)) for one in (CACHE_FILE, RUN_FILE))
    return KEY.fullmatch(name) is not None and os.path.basename(above) in SHARED


def _splits(folder: str) -> list[str]:
    """The splits of a DatasetDict that `datasets` saved; none of another folder."""
    try:
        splits = read_json(os.path.join(folder, SPLITS_FILE))["splits"]
        return [name for name in splits if os.path.isdir(os.path.join(folder, name))]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _root(pattern: str) -> str:
    """The folder that a glob begins in; another path itself."""
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        return pattern
    parts = pattern.split(os.sep)
    first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    return os.sep.join(parts[:first]) or (os.sep if os.path.isabs(pattern) else ".")


def is_in(path: str, folder: str) -> bool:
    """Whether a path is a folder, or in it, wherever both really are."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or _is_below(path, folder)


def _is_below(path: str, folder: str) -> bool:
    """Of paths that are real already."""
    return path != folder and path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_data(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and not any(fnmatch.fnmatch(name, p) for p in NO_DATA)


def _named(path: str) -> tuple[str | None, str | None]:
    """Format and compression that a file's name tells."""
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(stem)[1]
    return SUFFIXES.get(suffix), compression


def _known() -> str:
    return ", ".join(SUFFIXES) + ", those of text also with .gz or .zst"


def _source(path: str, where: str, format: str, sample_by: str) -> Source:
    check_name(path, where)
    named, compression = _named(path)
    if format == "auto":
        if named is None:
            suffix = os.path.splitext(path)[1]
            raise UserError(
                f"{where}: {path}: {f'unknown suffix {suffix!r}' if suffix else 'no suffix'} "
                f"(known: {_known()}); set format:"
            )
        format = named
    elif format == "csv" and named == "tsv":
        format = "tsv"
    elif format not in SUFFIXES.values():
        raise UserError(f"{where}: unknown format {format!r}; known: {_formats()}")
    if compression and format in COLUMNAR:
        raise UserError(f"{where}: {path}: {format} is read unpacked only; unpack the file")
    if not os.path.isfile(path):
        raise UserError(f"{where}: {path} is not a readable file, or is a dangling link")
    if not os.access(path, os.R_OK):
        raise UserError(f"{where}: {path} can't be read: no permission; change its mode")
    return Source(path, format, compression, sample_by)


def _formats() -> str:
    return ", ".join(dict.fromkeys(SUFFIXES.values()))
