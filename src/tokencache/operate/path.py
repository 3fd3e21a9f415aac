"""`tokencache path MODEL DATASET MAX_LENGTH`: where a cache is, for a script."""

from __future__ import annotations

import argparse

from .lib.experiment import add_cache_words, cache_of, config_of

add_words = add_cache_words


def run(arguments: argparse.Namespace) -> None:
    """Print one line. Raises UserError for a cache that is not there, and says how to make it."""
    wanted = arguments.model, arguments.dataset, arguments.max_length
    print(cache_of(config_of(arguments), *wanted)[1])
