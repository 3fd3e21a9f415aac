"""`tokencache path MODEL DATASET MAX_LENGTH`: where a cache is, for a script."""

from __future__ import annotations

import argparse

from .experiment import add_config_words, planned_cache


def add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("max_length", type=int)
    add_config_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print one line. Raises UserError for a cache that is not there, and says how to make it."""
    print(planned_cache(arguments, arguments.model, arguments.dataset, arguments.max_length))
