"""The files of a folder that a model is made of: what a run's key knows, and what may be loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..base.hashing import hash_file
from ..config.references import Reference
from ..errors import UserError
from .identity import check_same

CONFIGS = ("config.json", "generation_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SAFE = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def identity(
    wanted: Reference, trusted: bool, digests: Callable[[list[str]], list[str]], where: str
) -> list[Any]:
    """What the weights of a reference are: the commit, or the names and hashes of the files that
    a model is made of.

    trusted: whether code beside the weights is run. Raises UserError as `check` does.
    """
    if wanted.hub:
        return [wanted.hub, wanted.revision]
    folder = Path(wanted.path)
    check(folder, where)
    names = _files(folder, trusted, where)
    found = digests([str(folder / name) for name in names])
    return [[name, digest] for name, digest in zip(names, found, strict=True)]


def check_identity(run: dict[str, Any], where: str) -> None:
    """Raises UserError where the weights of a run are not those that the plan is for."""
    wanted = Reference(**run["weights"])
    found = identity(
        wanted, run["trust_remote_code"], lambda files: [hash_file(file) for file in files], where
    )
    check_same(found, run["weights_identity"], wanted.path, where)


def check(folder: Path, where: str) -> None:
    """Raises UserError where a folder holds no weights, or where they would be read from a file
    that can run code."""
    if not folder.is_dir():
        raise UserError(f"{where}: there is no folder {folder}")
    named = _weights(folder, where)
    for name in named:
        if not name.endswith(SAFE):
            raise UserError(
                f"{where}: {folder} names {name} as a file of its weights, which is no safetensors "
                "file; others can run any code when they are loaded. Load it once where you trust "
                "it and call model.save_pretrained(FOLDER), which writes safetensors"
            )
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if not named and pickles:
        raise UserError(
            f"{where}: {folder} holds its weights as pickle ({pickles[0]}), which can run any code "
            "when it is loaded, and no safetensors; load it once where you trust it and call "
            "model.save_pretrained(FOLDER), which writes safetensors"
        )
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{where}: {folder} lacks {missing[0]}, a file of its weights")


def _files(folder: Path, trusted: bool, where: str) -> list[str]:
    names = [name for name in CONFIGS if (folder / name).is_file()]
    names += _weights(folder, where)
    names += [name for name in (_named(folder, where), ADAPTER) if (folder / name).is_file()]
    if trusted:
        code = (file.relative_to(folder) for file in folder.rglob("*.py") if file.is_file())
        names += [str(name) for name in code if not any(p.startswith(".") for p in name.parts)]
    return sorted(set(names))


def _weights(folder: Path, where: str) -> list[str]:
    """The names of the files that tensors are read from, which may be missing; none where nothing
    names them. Those of an adapter that lies beside the weights are loaded too."""
    name = _named(folder, where)
    if name.endswith(".index.json"):
        index = _json(folder / name, where).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
            raise UserError(f"{where}: {folder / name} has no weight_map of tensors to files")
        found = sorted(set(index.values()))
    else:
        found = [name] if name != WEIGHTS or (folder / name).is_file() else []
    return found + ([ADAPTER_WEIGHTS] if (folder / ADAPTER).is_file() else [])


def _named(folder: Path, where: str) -> str:
    """The file that transformers begins with: as config.json says, else one file or an index."""
    config = folder / CONFIGS[0]
    said = _json(config, where).get("transformers_weights") if config.is_file() else None
    if isinstance(said, str):
        return said
    return INDEX if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file() else WEIGHTS


def _json(file: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {file} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {file} holds no JSON object")
    return found
