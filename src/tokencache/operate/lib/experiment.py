"""The experiment that a verb is asked about: its configuration, its folders and its plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...config import load
from ...config.explain import unknown
from ...config.load import load as load_config
from ...config.schema import Combination, Config
from ...errors import UserError

if TYPE_CHECKING:
    from ...plan.plan import Plan


def add_config_words(parser: argparse.ArgumentParser) -> None:
    text = "default: config.yaml; of several, later ones are laid over earlier ones"
    parser.add_argument("--configfile", nargs="+", metavar="FILE", type=Path, help=text)


def add_cache_words(parser: argparse.ArgumentParser) -> None:
    """A cache, as config.yaml names it."""
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("max_length", type=int)
    add_config_words(parser)


def add_folder_words(parser: argparse.ArgumentParser) -> None:
    """For verbs that need no more of a configuration than where its caches are."""
    add_config_words(parser)
    text = "look into this cache folder, whatever config.yaml names"
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help=text)
    parser.add_argument("--json", action="store_true", help="for programs")


def folders_of(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """The cache folder and the results folder; None for one that nothing names."""
    if arguments.cache is not None and not arguments.configfile:
        return arguments.cache, None
    config = config_of(arguments)
    return arguments.cache or Path(config.cache), Path(config.results)


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration, as `snakemake` in this folder reads it. Raises UserError."""
    files = arguments.configfile or [Path("config.yaml")]
    return load_config(load.read(files), files)


def combination(config: Config, model: str, dataset: str, max_length: int | str) -> Combination:
    """max_length: any number, or "all" of the configuration. Raises UserError for names that
    the configuration lacks, and for numbers that are no length."""
    for name, known, what in (
        (model, config.models, "model"),
        (dataset, config.datasets, "dataset"),
    ):
        if name not in known:
            raise UserError(unknown(name, known, "", what=what))
    try:
        return Combination(model=model, dataset=dataset, max_length=max_length)
    except ValueError:
        raise UserError(f"max_length: {max_length} is no number of tokens") from None


def plan_of(config: Config, *wanted: Combination) -> Plan:
    """What `snakemake` would do now; of some combinations only, where they are given."""
    from ...plan.resolve import resolve

    build = {"build": list(wanted)} if wanted else {}
    return resolve(config.model_copy(update=build))


def cache_of(config: Config, model: str, dataset: str, max_length: int) -> tuple[Plan, str]:
    """A cache that the configuration names, and its plan.

    Raises UserError for one that is not there, and says how to make it.
    """
    plan = plan_of(config, combination(config, model, dataset, max_length))
    [cache] = plan.caches
    if not Path(cache).exists():
        raise UserError(f"{cache} is not there yet; make it: snakemake --cores all {cache}")
    return plan, cache
