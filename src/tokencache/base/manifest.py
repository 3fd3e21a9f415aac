"""Sizes and checksums of a folder's files: written when it is made, compared later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .hashing import hash_file
from .json_files import read_json, write_json

MANIFEST = "manifest.json"
REPAIR = "`tokencache verify --repair` rebuilds what is damaged"

# {"bytes", "blake3"} of each file, by its path in the folder.
Contents = dict[str, dict[str, Any]]


def contents(folder: Path, known: dict[Path, str] | None = None) -> Contents:
    """Of all files in a folder, of which those are read whose checksum is not `known`."""
    known = known or {}
    return {
        str(path.relative_to(folder)): about(path, known.get(path))
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
        if path != folder / MANIFEST
    }


def about(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """Of one file, which is read where its checksum is not known."""
    return {"bytes": path.stat().st_size, "blake3": checksum or hash_file(path)}


def write(folder: Path) -> None:
    """Put the manifest of a folder into it, before the folder is published."""
    write_json(folder / MANIFEST, contents(folder))


def beside(file: str | Path) -> Path:
    """Where it is said what a file that stands alone holds: a token shard, an image."""
    return Path(file).with_suffix(".json")


def wrong_sizes(folder: Path, files: Contents) -> Iterator[str]:
    """What is wrong with files that are missing or have another size; nothing is read."""
    for name, made in files.items():
        try:
            found = (folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            yield f"{name} is missing"
            continue
        if found != made["bytes"]:
            yield f"{name} has {found:,} bytes instead of {made['bytes']:,}"


def check(folder: Path, what: str, whole: bool = False) -> None:
    """Raises UserError where files of a folder with a manifest are missing or cut short.

    whole: also where their checksums differ, for which all bytes are read.
    """
    try:
        files = read_json(folder / MANIFEST)
        found = damage(folder, files) if whole else list(wrong_sizes(folder, files))
    except FileNotFoundError:  # an earlier version made it
        return
    except (ValueError, TypeError, KeyError, AttributeError):
        found = [f"{MANIFEST} can't be read"]
    if found:
        raise UserError(
            f"{what} {folder} is damaged ({found[0]}); remove it and run snakemake again, which "
            f"rebuilds it; {REPAIR}"
        )


def damage(folder: Path, files: Contents, read: Callable[[int], Any] = lambda _: None) -> list[str]:
    """What is wrong with the files of a folder, all of which are read.

    read: is told the bytes of each file that was.
    """
    found = list(wrong_sizes(folder, files))
    for name, made in files.items() if not found else ():
        if hash_file(folder / name) != made["blake3"]:
            found.append(f"{name} has other bytes than were written (its checksum differs)")
        read(made["bytes"])
    return found
