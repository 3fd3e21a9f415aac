"""From YAML files to a checked configuration: files laid over each other, validated, explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..base import plain
from ..errors import MOST_NAMES, UserError
from . import training
from .explain import Lines, check_files, explain, unknown
from .schema import Config


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


def _meant(error: ValidationError) -> list[dict[str, Any]]:
    """The problems that pydantic found; of a key that may be a word or a list, what was meant."""
    problems = [
        problem
        for problem in error.errors()
        if not (problem["type"] == "literal_error" and isinstance(problem["input"], list | dict))
    ]
    return problems or error.errors()


def _refuse(problems: dict[tuple, str], count: int, files: list[str | Path]) -> None:
    """Raises UserError with what is wrong by key path, the first ones of so many, if any is."""
    if not problems:
        return
    lines = Lines(list(files))
    said = [
        f"{lines.of(location)}{'.'.join(plain.cut(str(part)) for part in location)}: {message}"
        for location, message in problems.items()
    ]
    more = [f"… and {count - MOST_NAMES:,} more"] if count > MOST_NAMES else []
    raise UserError("\n".join([*said, *more]))


def load(raw: dict[str, Any], files: list[str | Path] = ()) -> Config:
    """Validate a raw mapping (as Snakemake merged it) into a Config.

    `files` are the YAML files it came from; messages name file and line where
    they can. Raises UserError with every problem, one a line.
    """
    check_files(list(files))
    odd = list(plain.problems(raw))
    _refuse(dict(odd[:MOST_NAMES]), len(odd), files)
    try:
        config = Config.model_validate(sized(raw))
    except ValidationError as error:
        problems = _meant(error)
        said = dict(explain(problem, Config) for problem in problems[:MOST_NAMES])
        _refuse(said, len(problems), files)
        raise
    _check_names(config)
    training.check(config)
    return config


def _check_names(config: Config) -> None:
    """Names that refer to each other must exist; every combination must be known."""
    config.combinations()
    for name, tokenizer in config.tokenizers.items():
        for dataset in tokenizer.dataset:
            if dataset not in config.datasets:
                where = f"tokenizers.{name}.dataset"
                raise UserError(f"{where}: {unknown(dataset, config.datasets, '', what='dataset')}")
