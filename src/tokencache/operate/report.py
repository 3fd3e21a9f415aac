"""`tokencache report MODEL DATASET MAX_LENGTH`: the data report of a cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from .lib.experiment import add_cache_words, cache_of, config_of


def add_words(parser: argparse.ArgumentParser) -> None:
    add_cache_words(parser)
    parser.add_argument("--json", action="store_true", help="the figures, for a program")
    text = "write the page there (with --json the figures), rather than to say what is in it"
    parser.add_argument("--output", metavar="FILE", type=Path, help=text)


def run(arguments: argparse.Namespace) -> None:
    """Print what was found, or the figures; or write a file.

    The report is the one in the cache's folder; one without, of an earlier version, is looked
    at anew. Raises UserError for a cache that is not there.
    """
    from ..base.publish import published
    from ..caches import report
    from ..caches.report.page import page
    from ..workflow.stages import look_at_cache

    wanted = arguments.model, arguments.dataset, arguments.max_length
    plan, cache = cache_of(config_of(arguments), *wanted)
    file = Path(cache, report.PAGE_FILE)
    found = report.read(cache) or look_at_cache(plan, cache)
    if arguments.output:
        with published(arguments.output) as path:
            text = report.as_json(found) if arguments.json else page(found)
            path.write_text(text, encoding="utf-8")
    elif arguments.json:
        print(report.as_json(found), end="")
    else:
        print("\n".join(report.lines(found) or ["nothing to say: all checks passed"]))
        print(f"the whole of it: {file}" if file.exists() else "--output FILE writes the page")
