"""What comes from a hub: data sets, laid down as Arrow files with digests, and weights."""

from __future__ import annotations

import fnmatch
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..base import limits, manifest
from ..base.hashing import hash_file
from ..base.json_files import read_json, write_json
from ..base.progress import Progress, growing
from ..base.publish import published
from ..base.records import FETCHED_FILE as FETCHED
from ..base.records import KEY_FILE
from ..config.references import Reference
from ..errors import UserError
from . import hub_files, read
from .identity import check_same
from .source import Piece, Source

ROWS = 1000  # read at a time

# What a model is loaded from: no pickles, and no copies for other libraries.
WEIGHTS_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]


def fetch(wanted: dict[str, Any], folder: Path) -> None:
    """Load one split and publish it as `num_shards` Arrow files of equal numbers of rows.

    wanted: the plan's entry. Raises UserError where the data set, its
    configuration or its split can't be had.
    """
    reference = wanted["reference"]
    where = f"datasets.{wanted['dataset']}"
    if wanted["reading"] != hub_files.reading():
        raise UserError(
            f"{where}: `datasets` reads files otherwise than where the plan was made: it, pandas "
            "or pyarrow is another version now; run snakemake again"
        )
    # What `datasets` remembers of a folder goes by the files' times, not by their contents.
    scratch = tempfile.TemporaryDirectory() if reference["path"] else nullcontext()
    with scratch as cache:
        data = _loaded(wanted, where, cache)
        if reference["path"]:
            _check(wanted, where)
        _write(data, wanted["num_shards"], folder)


def _check(wanted: dict[str, Any], where: str) -> None:
    """Raises UserError where a folder holds other files than the plan is for."""
    path = wanted["reference"]["path"]
    found = hub_files.identity(Reference(path=path), lambda files: list(map(hash_file, files)))
    check_same(found, wanted["identity"], path, where)


def _loaded(wanted: dict[str, Any], where: str, cache: str | None) -> Any:
    import datasets

    reference, chosen = wanted["reference"], limits.settings()
    datasets.disable_progress_bars()
    try:
        if reference["path"]:
            named = datasets.load_dataset_builder(
                reference["path"], wanted["name"], cache_dir=cache
            ).config.data_files
            files = [file for of_split in (named or {}).values() for file in of_split]
            hub_files.check_files(files, reference["path"], wanted["identity"], where)
        with growing(f"load {wanted['dataset']}", *_filled(reference, cache)):
            return datasets.load_dataset(
                reference["path"] or reference["hub"],
                wanted["name"],
                split=wanted["split"],
                revision=reference["revision"],
                cache_dir=cache,
                num_proc=chosen.processes if chosen.processes > 1 else None,
                writer_batch_size=chosen.writer_rows,
            )
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as e:
        raise UserError(f"{where}: `datasets` can't load it: {_why(e)}") from None


def _filled(reference: dict[str, Any], cache: str | None) -> list[Path]:
    """The folders that `datasets` writes to: what it fetches, and what it makes of that."""
    if cache is not None:
        return [Path(cache)]
    from datasets import config

    made = Path(config.HF_DATASETS_CACHE, reference["hub"].replace("/", "___"))
    return [_of_hub(reference["hub"], "dataset"), made]


def _of_hub(name: str, kind: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))


def _why(error: Exception) -> str:
    """Of files that it can't read, `datasets` says only which step that was."""
    if not error.__cause__:
        return str(error)
    # One of several processes has all of its traceback here.
    cause, _, _ = str(error.__cause__).partition("\n\nThe above exception was the direct cause")
    return f"{error}: {cause.strip().splitlines()[-1] if cause.strip() else ''}"


def _write(data: Any, count: int, folder: Path) -> None:
    data = data.with_format("arrow")
    schema = data.features.arrow_schema
    least, more = divmod(len(data), count)  # the first `more` files have one row more
    made_of = {}
    with published(folder, folder=True) as made, Progress(len(data), "rows", "fetch") as progress:
        for number in range(count):
            start = number * least + min(number, more)
            stop = start + least + (number < more)
            name = f"{number:05d}.arrow"
            with pa.OSFile(str(made / name), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for at in range(start, stop, ROWS):
                    table = data[at : min(stop, at + ROWS)]
                    # One batch, however small those are in which `datasets` wrote its own files.
                    writer.write_table(table.cast(schema).combine_chunks())
                    progress.update(len(table))
            source = Source(str(made / name), "arrow", None, "line")
            units = read.units(source)
            digest = read.digest_of_units([digest for _, digest in units])
            made_of[name] = {"batches": len(units), "digest": digest}
            made_of[name] |= manifest.about(made / name)
        write_json(made / FETCHED, made_of)
        write_json(made / KEY_FILE, {"key": folder.name})


def fetch_weights(wanted: dict[str, Any], folder: Path) -> None:
    """Publish a model of the hub, safetensors alone, from the hub's own cache on this machine.

    wanted: the plan's entry. Raises UserError where the model can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    hub, revision = wanted["reference"]["hub"], wanted["reference"]["revision"]
    disable_progress_bars()
    try:
        with growing(f"download {hub}", _of_hub(hub, "model")):
            there = snapshot_download(hub, revision=revision, allow_patterns=WEIGHTS_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"models.{wanted['model']}.weights: {hub} can't be had: {error}") from None
    with published(folder, folder=True) as made, growing(f"copy {hub}", made):
        # Copies, for the user's own folder is not ours to open to a group.
        copy = shutil.copyfile
        shutil.copytree(there, made, dirs_exist_ok=True, ignore=_others, copy_function=copy)
        write_json(made / KEY_FILE, {"key": folder.name})
        manifest.write(made)


def _others(folder: str, names: list[str]) -> list[str]:
    """The hub's cache may hold more than what was asked for now."""
    wanted = {name for pattern in WEIGHTS_FILES for name in fnmatch.filter(names, pattern)}
    return [n for n in names if n not in wanted and not Path(folder, n).is_dir()]


def piece(folder: str, source: Source) -> tuple[Piece, str]:
    """One fetched file as a piece, and its digest as it was when it was fetched."""
    try:
        entry = read_json(Path(folder, FETCHED))[Path(source.path).name]
    except FileNotFoundError:
        raise UserError(f"{folder} is missing; run snakemake again to fetch it") from None
    return Piece(source, 0, entry["batches"]), entry["digest"]
