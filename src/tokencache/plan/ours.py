"""What proves that something in a cache or results folder was made by this workflow: its records.

A path alone proves nothing, for somebody's own folder may be called as ours are. Each function
says why a thing is not known to be ours, and None where it is. Only small files are read. A file
that no record names is somebody's own, and keeps the folder that it lies in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base.json_files import read_json
from ..base.manifest import MANIFEST, beside
from ..base.marks import MARKS
from ..base.publish import TEMPORARY, TIMESTAMP
from ..base.records import (
    CACHE_FILE,
    FACTS_FILE,
    FETCHED_FILE,
    KEY_FILE,
    PART_FILE,
    QUARANTINE_FILE,
    RUN_FILE,
    TARGET,
)
from .inventory import brief

# What others put into our folders while they use them: Snakemake, those who load a cache, `map` of
# datasets, and NFS for a file that is removed while it is open.
BY_USE = re.compile(
    rf"{re.escape(TIMESTAMP)}|{'|'.join(map(re.escape, MARKS))}"
    r"|cache-[0-9a-f]+(_[0-9]+_of_[0-9]+)?\.arrow|\.nfs[0-9a-f]+"
)

BESIDE = re.compile(r"\.(?P<target>[0-9]+-[0-9a-f]{12})\.(?P<kind>checkpoints|building|parts)")
CHECKPOINT = re.compile(r"checkpoint-[0-9]+")
CHECKPOINT_FILE = "tokencache.json"
LIVE_RECORDS = "metrics.jsonl"  # of a training, beside its checkpoints
BEING_REMOVED = re.compile(r"\.checkpoint-[0-9]+\.tmp")
A_PART = re.compile(r"[0-9]{3}-of-[0-9]{3}")
# Who takes part in a lease, and who failed while holding it; also as an earlier version wrote it.
HOLDER = re.compile(r"\.?.+-[0-9]+-[0-9]+-[0-9a-f]{8}(\.failed)?")

# The files of a run or tokenizer that has no manifest, as earlier versions wrote none.
WITHOUT_MANIFEST = re.compile(
    r"(run|facts|timing|provenance)\.json|(metrics|translations)\.jsonl|(loss|throughput)\.svg"
    r"|(adapter/)?(model|adapter_model)(-[0-9]+-of-[0-9]+)?\.safetensors(\.index\.json)?"
    r"|(adapter/)?(config|generation_config|adapter_config|tokenizer|tokenizer_config|vocab"
    r"|special_tokens_map|added_tokens)\.json"
    r"|(chat_template|additional_chat_templates/[^/]+)\.jinja|merges\.txt|vocab\.txt|[^/]+\.model"
)

SHARD_RECORD = {"key", "documents", "tokens"}

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def why_not_a_cache(folder: Path) -> str | None:
    return _why_not_a_target(folder, CACHE_FILE, _of_cache)


def why_not_a_run(folder: Path) -> str | None:
    return _why_not_a_target(folder, RUN_FILE, _of_run)


def _of_cache(folder: Path) -> tuple[dict[str, Any], int, Iterable[str] | None]:
    about = brief(folder)
    return about, about["settings"]["max_length"], about.get("files")


def _of_run(folder: Path) -> tuple[dict[str, Any], int, Iterable[str] | None]:
    about = read_json(folder / RUN_FILE)
    return about, about["max_length"], _listed(folder)


def _why_not_a_target(
    folder: Path,
    record: str,
    read: Callable[[Path], tuple[dict[str, Any], int, Iterable[str] | None]],
) -> str | None:
    if not TARGET.fullmatch(folder.name):
        return "it is not called MAX_LENGTH-KEY"
    length, _, digits = folder.name.partition("-")
    try:
        about, max_length, files = read(folder)
        names = (about["model"], about["dataset"], str(max_length))
        right = about["key"].startswith(digits) and names == (*folder.parts[-3:-1], length)
    except FileNotFoundError:
        return f"it has no {record}"
    except UNREADABLE:
        return f"its {record} can't be read"
    if not right:
        return f"its {record} is of something else"
    return None if files is None else _stranger(folder, {record, MANIFEST, *files})


def why_not_a_tokenizer(folder: Path) -> str | None:
    if why := _why_not_keyed(folder, FACTS_FILE):
        return why
    try:
        listed = set(_listed(folder))
    except UNREADABLE:
        return f"its {MANIFEST} can't be read"
    return _stranger(folder, {FACTS_FILE, MANIFEST, *listed})


def why_not_fetched(folder: Path) -> str | None:
    """Of a data set or a model of a hub. Those of earlier versions have no key in them, but the
    names and sizes of all of their files."""
    record = FETCHED_FILE if (folder / FETCHED_FILE).exists() else MANIFEST
    try:
        files = read_json(folder / record)
        if not files or any("digest" not in about and "blake3" not in about
                            for about in files.values()):  # fmt: skip
            return f"its {record} is of something else"
    except FileNotFoundError:
        return f"it has no {record}"
    except UNREADABLE:
        return f"its {record} can't be read"
    if (folder / KEY_FILE).exists() and (why := _why_not_keyed(folder, KEY_FILE)):
        return why
    return _stranger(folder, {FETCHED_FILE, MANIFEST, KEY_FILE, *files})


def _why_not_keyed(folder: Path, record: str) -> str | None:
    try:
        key = read_json(folder / record)["key"]
    except FileNotFoundError:
        return f"it has no {record}"
    except UNREADABLE:
        return f"its {record} can't be read"
    return None if key == folder.name else f"its {record} is of something else"


def why_not_a_shard(path: Path) -> str | None:
    """Of a token shard, or of its record that stands alone.

    A shard whose record is lost, or of an earlier version, which wrote none, is known by its
    columns.
    """
    try:
        about = read_json(beside(path))
        if about["key"] == path.stem and about.keys() >= SHARD_RECORD:
            return None
    except UNREADABLE:
        pass
    if path.suffix == ".arrow" and _has_columns_of_a_shard(path):
        return None
    return f"it has no record {beside(path).name} with its key"


def _has_columns_of_a_shard(path: Path) -> bool:
    import pyarrow as pa  # takes long, and is rarely asked for

    from ..tokens.read import ID_TYPES, ROW_HASH, schema_of

    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            found = reader.schema
    except (pa.ArrowException, OSError):
        return False
    for schema in (schema_of(ids, masked) for ids in ID_TYPES for masked in (False, True)):
        earlier = schema.remove(schema.get_field_index(ROW_HASH))
        if found in (schema, earlier):
            return True
    return False


def why_not_beside(path: Path) -> str | None:
    """Of what stands beside a cache or a run: checkpoints, parts, and where its makers meet."""
    named = BESIDE.fullmatch(path.name)
    if named is None:
        return "it is not called as what we put beside a target"
    entries = _entries(path)
    if named["kind"] == "building":
        return _all_are(path, entries, lambda name: name == "holder" or HOLDER.fullmatch(name))
    target = path.with_name(named["target"])
    digits = named["target"].partition("-")[2]
    # The target's own record speaks for what was left when it was published.
    if named["kind"] == "parts":
        if why_not_a_cache(target) is None:
            return _all_are(path, entries, A_PART.fullmatch)
        return _all_are(path, entries, lambda name: _is_of(path, name, A_PART, PART_FILE, digits))
    if why_not_a_run(target) is None:
        return None
    return _all_are(
        path,
        entries,
        lambda name: (
            name == LIVE_RECORDS
            or BEING_REMOVED.fullmatch(name)
            or _is_of(path, name, CHECKPOINT, CHECKPOINT_FILE, digits)
        ),
    )


def why_not_put_away(folder: Path) -> str | None:
    """Of what one call of `tokencache verify` put away."""
    return None if (folder / QUARANTINE_FILE).is_file() else f"it has no {QUARANTINE_FILE}"


def _is_of(folder: Path, name: str, called: re.Pattern, record: str, digits: str) -> bool:
    if not called.fullmatch(name):
        return False
    try:
        return read_json(folder / name / record)["key"].startswith(digits)
    except UNREADABLE:
        return False


def _all_are(folder: Path, names: Iterable[str], ours: Callable[[str], Any]) -> str | None:
    for name in names:
        if not (ours(name) or TEMPORARY.fullmatch(name) or BY_USE.fullmatch(name)):
            return f"it holds {name}, which has no record"
    return None


def _listed(folder: Path) -> Iterable[str]:
    """The files that a folder's manifest names, or, without one, that are called as ours are."""
    try:
        return read_json(folder / MANIFEST).keys()
    except FileNotFoundError:
        return filter(WITHOUT_MANIFEST.fullmatch, _files_below(folder))


def _stranger(folder: Path, known: set[str]) -> str | None:
    """Of a folder's files, the first that no record names."""
    for inside in _files_below(folder):
        if inside not in known and not BY_USE.fullmatch(os.path.basename(inside)):
            return f"it holds {inside}, which has no record"
    return None


def _files_below(folder: Path) -> Iterator[str]:
    for above, _, files in os.walk(folder):
        for name in sorted(files):
            yield os.path.relpath(os.path.join(above, name), folder)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
