"""`tokencache path MODEL DATASET MAX_LENGTH`: where a cache is, for a script."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import Combination
from ..errors import UserError
from .experiment import add_config_words, config_of, plan_of


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("max_length", type=int)
    add_config_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print one line. Raises UserError for a cache that is not there, and says how to make it."""
    names = arguments.model, arguments.dataset, arguments.max_length
    wanted = Combination(model=names[0], dataset=names[1], max_length=names[2])
    plan = plan_of(config_of(arguments), wanted)
    [cache] = plan.caches
    if not Path(cache).exists():
        raise UserError(f"{cache} is not there yet; make it: snakemake --cores all {cache}")
    print(cache)
