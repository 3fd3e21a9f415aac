"""`tokencache doctor`: what of this machine slows the work down or stops it, and the remedy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from ..base import limits, tables
from ..config.schema import Config
from ..errors import UserError
from ..sources import find
from . import env
from .checks import FAIL, OK, WARN, Finding, cluster, disk, gpu, models, software, system
from .lib.experiment import add_config_words, config_of

CHECKOUT = Path(__file__).parents[3]
COLOURS = {OK: "green", WARN: "yellow", FAIL: "bold red"}

# Bytes on the disk for a byte of text, at most: a token stands for two bytes of text or more, and
# has up to four in a token shard; in a cache, in each of two columns (three where it is packed).
IN_TOKEN_SHARDS, IN_A_COLUMN = 2, 2
COMPRESSED = 5  # bytes of text in one of a compressed file


def add_words(parser: argparse.ArgumentParser) -> None:
    add_config_words(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print all findings; returns 1 if one of them stops the work."""
    allowed = limits.here()
    found = list(findings(arguments, allowed))
    settings = env.classes(allowed)
    if arguments.json:
        said = {"findings": list(map(asdict, found)), "settings": settings}
        tables.show_json(said)
    else:
        _show(found, settings)
    return int(any(finding.state == FAIL for finding in found))


def findings(arguments: argparse.Namespace, allowed: limits.Allowed) -> Iterator[Finding]:
    config, about = _config(arguments)
    yield about
    folder = Path(config.cache if config else "cache")
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "models": lambda: models.check(config) if config else [],
        "system": lambda: system.check(allowed),
        "disk": lambda: disk.check(folder),
        "index": lambda: [disk.index(Path.cwd())],
        "space": lambda: [disk.space(folder, needed(config) if config else None)],
        "environment": lambda: software.environment(os.environ, allowed.cores.amount),
        "versions": lambda: software.versions(CHECKOUT / "envs"),
        "containers": lambda: cluster.containers(Path("images")),
        "SLURM": lambda: cluster.cluster(CHECKOUT / "slurm/config.yaml"),
        "GPU": gpu.check,
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # one that is broken must not hide the others
            yield Finding(WARN, name, f"could not be looked at: {type(error).__name__}: {error}")


def _config(arguments: argparse.Namespace) -> tuple[Config | None, Finding]:
    if arguments.configfile is None and not Path("config.yaml").exists():
        said = "there is no config.yaml in this folder, so no model is looked at"
        return None, Finding(WARN, "config.yaml", said, "start in the folder of an experiment")
    try:
        config = config_of(arguments)
    except UserError as error:
        return None, Finding(FAIL, "config.yaml", str(error), "mend it; docs/config.md explains it")
    counts = f"models: {', '.join(config.models)}; data sets: {', '.join(config.datasets)}"
    return config, Finding(OK, "config.yaml", counts)


def needed(config: Config) -> float | None:
    """Bytes at most of all that a configuration makes anew; None where files are missing.

    What a hub holds is not known.
    """
    from ..plan.plan import own_folders

    sizes: dict[str, float] = {}
    shards: dict[tuple[str, str], float] = {}
    caches = 0.0
    own = own_folders(config.cache, config.results)
    for model, name, _ in config.combinations():
        dataset = config.datasets[name]
        if name not in sizes:
            sizes[name] = 0.0
            if dataset.files:
                try:
                    key = f"datasets.{name}.files"
                    how = dataset.format, dataset.sample_by, "train"
                    found = find.find(dataset.files, key, *how, own)
                except UserError:
                    return None
                for source in (source for group in found for source in group):
                    times = COMPRESSED if source.compression else 1
                    sizes[name] += os.stat(source.path).st_size * times
        shards[config.models[model].tokenizer_reference, name] = IN_TOKEN_SHARDS * sizes[name]
        if config.format == "dataset":
            columns = 2 if dataset.packing == "none" else 3
            caches += columns * IN_A_COLUMN * sizes[name]
    return sum(shards.values()) + caches


def _show(found: list[Finding], settings: dict[str, dict[str, int | str]]) -> None:
    out = tables.console()
    for finding in found:
        line = Text(f"{finding.state:5}", style=COLOURS[finding.state])
        line.append(f"{finding.what}: {finding.said}", style="none")
        if finding.remedy:
            line.append(f"\n      → {finding.remedy}", style="none")
        out.print(line)
    names = next(iter(settings.values()))
    rows = [[name, *(str(chosen[name]) for chosen in settings.values())] for name in names]
    out.print("\nSettings that fit; `tokencache env` prints them to source:")
    out.print(tables.table(["", *settings], rows, list(settings)))
    counts = {state: sum(one.state == state for one in found) for state in (OK, WARN, FAIL)}
    out.print(", ".join(f"{number} {state}" for state, number in counts.items()))
