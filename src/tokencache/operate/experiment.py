"""The experiment that a verb is asked about: its configuration, its folders and its plan."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import config_files
from ..config import Combination, Config
from ..config import load as load_config
from ..plan import Plan
from ..resolve import resolve


def add_config_words(parser: argparse.ArgumentParser) -> None:
    text = "default: config.yaml; of several, later ones are laid over earlier ones"
    parser.add_argument("--configfile", nargs="+", metavar="FILE", type=Path, help=text)


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration, as `snakemake` in this folder reads it. Raises UserError."""
    files = arguments.configfile or [Path("config.yaml")]
    return load_config(config_files.read(files), files)


def plan_of(config: Config, *wanted: Combination) -> Plan:
    """What `snakemake` would do now; of some combinations only, where they are given."""
    build = {"build": list(wanted)} if wanted else {}
    return resolve(config.model_copy(update=build))
