"""Have snakemake make something, with the Snakefile of this checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..config.schema import Combination
from ..errors import UserError

SNAKEFILE = Path(__file__).parents[3] / "Snakefile"


def command(
    targets: Sequence[str], arguments: Sequence[str], folder: Path, files: Sequence[Path]
) -> list[str]:
    """The words after `snakemake`, run in `folder`, that make some targets of a configuration."""
    words = [*targets, *arguments]
    if SNAKEFILE.parent != folder:
        words += ["--snakefile", str(SNAKEFILE)]
    if list(files) != [folder / "config.yaml"]:
        words += ["--configfile", *map(str, files)]
    return words


def of_only(wanted: Iterable[Combination]) -> list[str]:
    """The words that have snakemake look at some combinations of the configuration alone."""
    only = json.dumps([combination.model_dump() for combination in wanted])
    return ["--config", f"build={only}"]


def check(folder: Path, asked: str, otherwise: str) -> None:
    """Raises UserError where this process can't run snakemake in a folder.

    asked: what it was to be run for; otherwise: what else there is to do.
    """
    if not SNAKEFILE.is_file():
        raise UserError(
            f"there is no {SNAKEFILE}: for {asked}, tokencache has to be installed from a "
            "checkout of it, with `pip install --editable`"
        )
    if importlib.util.find_spec("snakemake") is None:
        raise UserError(f"{asked} needs snakemake, which {sys.executable} lacks; {otherwise}")
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"you may not write in {folder}, where snakemake would be run; copy the "
            f"configuration to a folder of your own, or let its owner do it: {otherwise}"
        )
