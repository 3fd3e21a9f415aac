"""What decides the rows of a data set that `datasets` loads: its files, and how they are read."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from ..base.hashing import key_of
from ..base.publish import DISK_FULL
from ..config.references import Reference
from ..errors import UserError

# The libraries that can change what files mean.
LIBRARIES = ("datasets", "pandas", "pyarrow", "numpy")

# In a folder, what names the files of each configuration and split, and their columns.
CARD, STANDALONE = "README.md", ".huggingface.yaml"
DECISIVE = ("configs", "dataset_info")
FRONT_MATTER = re.compile(r"\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)", re.S)

# Files of each kind whose rows show how values are understood.
_ROWS = [
    {"text": "a", "n": 1, "f": 0.1, "b": True, "none": None, "at": "2024-01-31", "s": ["x", None]},
    {
        "text": " b\n\u00e9\u0000",
        "n": -7,
        "more": {"a": 1, "b": [{"c": None}]},
        "empty": [],
        "f": 2,
    },
    {"messages": [{"role": "user", "content": "c"}, {"role": "tool", "x": {"y": 1.5}}], "n": None},
]
_CSV = (
    'text,n,f,empty,word,at\n"a, ""b""\nc",1,1.0,,NA,2024-01-31\n d ,2,1e3,,null,\nNone,,nan,,,x\n'
)
_TEXT = "one\n\n two \r\nthree\u2028four"


# Files


def identity(wanted: Reference, digests: Callable[[list[str]], list[str]]) -> list[Any]:
    """What a data set is: the commit, or the names and hashes of a folder's files.

    Hidden files decide nothing, and of a README.md only what `datasets` reads in it.
    """
    if wanted.hub:
        return [wanted.hub, wanted.revision]
    root = Path(wanted.path)
    files = [root]
    if root.is_dir():
        files = sorted(path for path in _visible(root) if path.name != CARD or path.parent != root)
    found = digests([str(path) for path in files])
    named = [
        [str(path.relative_to(root)), digest] for path, digest in zip(files, found, strict=True)
    ]
    return [*named, *([[CARD, key_of(said)]] if (said := _said(root)) else [])]


def _visible(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts):
            yield path


def _said(root: Path) -> dict[str, str]:
    """What a folder's own description says of its files."""
    found: dict[str, Any] = {}
    for name, pattern in ((CARD, FRONT_MATTER), (STANDALONE, re.compile("(.*)", re.S))):
        try:
            text = (root / name).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            continue
        if matter := pattern.match(text):
            try:
                found |= yaml.safe_load(matter[1]) or {}
            except (yaml.YAMLError, TypeError, ValueError):
                found |= {"configs": matter[1]}  # `datasets` says what is wrong with it
            except RecursionError:
                raise UserError(
                    f"{root / name}: the YAML in it is nested too deeply to be read; correct it"
                ) from None
    return {name: yaml.safe_dump(found[name]) for name in DECISIVE if name in found}


def check_files(used: Iterable[str], root: str, known: list[Any], where: str) -> None:
    """Raises UserError where `datasets` reads a file that a folder's identity does not cover."""
    names = {name for name, _ in known}
    for file in used:
        # Any part of a path can be a link.
        ways = (os.path.abspath, os.path.realpath)
        named = {os.path.relpath(one(file), other(root)) for one in ways for other in ways}
        if "://" in file or not names & named:
            raise UserError(
                f"{where}.hub: the {CARD} of {root} names {file}, which is hidden or elsewhere, so "
                "a change of it would not be seen; move it into the folder, under a name that "
                "does not begin with a dot"
            )


# How files are read


def decided_by() -> tuple[list[str], list[str]]:
    """What `reading` can change with: this file, and the versions of libraries."""
    return [__file__], [f"{name} {version(name)}" for name in LIBRARIES]


def reading() -> str:
    """The key of the rows and columns that `datasets` makes of some files.

    A version number in a key would make every data set stale with each release. This does so
    with a release that reads files otherwise, and with no other one.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = {kind: _read(kind, path, folder) for kind, path in _files(Path(folder))}
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{tempfile.gettempdir()}: the disk is full, and planning needs a few kilobytes there "
            "to try how `datasets` reads files; free some space, or name another folder: TMPDIR"
        ) from None
    return key_of(found)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    lines, array, table, text, parquet = (
        folder / name for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet")
    )
    lines.write_text("".join(json.dumps(row) + "\n" for row in _ROWS), encoding="utf-8")
    array.write_text(json.dumps(_ROWS), encoding="utf-8")
    table.write_text(_CSV, encoding="utf-8")
    text.write_bytes(_TEXT.encode())
    import pyarrow.parquet as pq  # which most plans don't need

    pq.write_table(pa.Table.from_pylist(_ROWS), parquet)
    yield from (("json", lines), ("json", array), ("csv", table), ("text", text))
    yield "parquet", parquet


def _read(kind: str, path: Path, folder: str) -> Any:
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            kind, data_files=str(path), split="train", cache_dir=f"{folder}/cache"
        )
        columns = [[field.name, str(field.type)] for field in found.features.arrow_schema]
        return [columns, json.dumps(found.to_list(), default=str)]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if full := _disk_full(error):
            raise full from None
        return type(error).__name__  # a version that can't read it is another one, too
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _disk_full(error: BaseException | None) -> OSError | None:
    """What says that a disk is full, of an error and those that it comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None
