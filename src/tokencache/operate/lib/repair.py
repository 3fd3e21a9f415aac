"""What is damaged: put away by one rename, and made again by snakemake."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...base import marks
from ...base.hashing import key_of
from ...base.json_files import read_json, write_json
from ...base.publish import make_folder
from ...base.records import CACHE_FILE, QUARANTINE, QUARANTINE_FILE, RUN_FILE
from ...config.schema import Combination, Config
from ...errors import UserError
from ...plan.inventory import cache_folders, run_folders  # fmt: skip
from ...plan.plan import PLANS, Plan
from ...training import ranks
from ...workflow import making
from .experiment import plan_of
from .integrity import Thing, confirmed, written
from .made_of import fetched_folders, shards

Names = tuple[str, str, int]  # model, data set, max_length


@dataclass
class Finding:
    """Something damaged: what is wrong with it, and what became of it.

    by_rows: its bytes are as they were written, but rows differ from Hugging Face's tokenizer's.
    """

    thing: Thing
    problem: str
    state: Any = None
    by_rows: bool = False
    quarantine: str | None = None
    repaired: bool = False
    fate: str = ""

    def json(self) -> dict[str, Any]:
        """For programs."""
        about = {"kind": self.thing.kind, "path": str(self.thing.path), "problem": self.problem}
        done = {"quarantine": self.quarantine, "repaired": self.repaired, "fate": self.fate}
        return about | done


# Quarantine


def quarantine(found: list[Finding], cache: str) -> None:
    """Move what is damaged out of everybody's way, to where nothing is read.

    Runs stay: they are results, and to train again takes hours.
    """
    place = Path(cache, QUARANTINE, f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}")
    for one in found:
        if one.thing.kind == "run":
            one.fate = "left where it is; delete it, and snakemake trains it again"
        elif one.state is not None:
            _put_away(one, Path(cache), place)
    if place.exists():
        with suppress(OSError, UserError):  # without, nothing proves what the folder is
            write_json(place / QUARANTINE_FILE, [one.json() for one in found if one.quarantine])


def _put_away(one: Finding, cache: Path, place: Path) -> None:
    if one.thing.state() != one.state:
        one.fate = "another process changed it meanwhile; verify again"
        return
    try:
        for path in one.thing.files():
            aside = place / os.path.relpath(path, cache)
            make_folder(aside.parent)
            with suppress(FileNotFoundError):
                os.rename(path, aside)
    except (OSError, UserError) as error:
        one.fate = f"it can't be put away: {error}; its owner, or who may write in its folder, can"
        return
    one.quarantine = str(place / os.path.relpath(one.thing.path, cache))
    one.fate = "in quarantine"


# Uses


class Uses:
    """Which caches, of those that are there, are made of what; looked up before anything goes.

    By the key of a token shard, a tokenizer or a fetched folder.
    """

    def __init__(self, config: Config) -> None:
        self._of: dict[str, list[Names]] = {}
        for folder in cache_folders(config.cache):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                self._add(names_of(folder), read_json(folder / CACHE_FILE), config.cache)
        for folder in run_folders(config.results):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                weights = read_json(folder / RUN_FILE)["made_of"]["weights"] or {}
                key = key_of(["hub weights", [weights["hub"], weights["revision"]]])
                self._of.setdefault(key, []).append(names_of(folder))

    def _add(self, names: Names, about: dict[str, Any], cache: str) -> None:
        for key in _keys(about, cache):
            self._of.setdefault(key, []).append(names)

    def of(self, one: Thing) -> list[Names]:
        """The names of the caches that a thing may have been made for."""
        if one.kind == "cache":
            return [names_of(one.path)]
        return list(dict.fromkeys(self._of.get(one.path.stem, [])))


def _keys(about: dict[str, Any], cache: str) -> Iterator[str]:
    """Of the tokenizer, the fetched data sets and the token shards of a cache."""
    yield about["tokenizer"]["key"]
    yield from (Path(folder).name for folder in fetched_folders(about, cache))
    for of_split in shards(about).values():
        yield from (key for shard in of_split for key in shard.tokens)


def made_of(folders: Iterable[Path], cache: str) -> set[str]:
    """The keys of all that some caches were made of."""
    found: set[str] = set()
    for folder in folders:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found |= set(_keys(read_json(folder / CACHE_FILE), cache))
    return found


def names_of(folder: Path) -> Names:
    """Model, data set and max_length of a cache or a run, by its path."""
    model, dataset, name = folder.parts[-3:]
    return model, dataset, int(name.partition("-")[0])


def _combination(names: Names) -> Combination:
    return Combination(**dict(zip(("model", "dataset", "max_length"), names, strict=True)))


# Repair


def rebuild(
    found: list[Finding], config: Config, files: list[Path], uses: Uses, arguments: list[str]
) -> None:
    """Have snakemake make again what was put away or is missing, and nothing else.

    Raises UserError where snakemake can't be run here.
    """
    chosen = [one for one in found if one.quarantine or one.state is None]
    wanted: dict[str, None] = {}
    needed_by: dict[Names, None] = {}
    made_by: list[Finding] = []
    plans = _Plans(config)
    gone = {str(one.thing.path) for one in chosen if one.thing.kind == "cache"}
    for one in chosen:
        target, names, why = _target(one, plans, uses, gone)
        if target is None:
            one.fate = f"{one.fate or 'missing'}; not made again: {why}"
            continue
        wanted[target], needed_by[names] = None, None
        made_by.append(one)
    if not made_by:
        return
    words = [*arguments, *making.of_only(map(_combination, needed_by))]
    before = {id(one): _told(one) for one in made_by}
    _snakemake(making.command(list(wanted), words, Path.cwd(), files))
    for one in made_by:
        _settle(one, before[id(one)])


class _Plans:
    """What snakemake would do for a combination of the configuration, or why it can't."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.of = cache(self._of)

    def _of(self, names: Names) -> Plan | str:
        if names not in self._config.combinations():
            return "the present config does not make {}, {}, max_length {}".format(*names)
        try:
            return plan_of(self._config, _combination(names))
        except UserError as error:
            return str(error)


def _target(
    one: Finding, plans: _Plans, uses: Uses, gone: set[str]
) -> tuple[str | None, Names | None, str]:
    """The target that snakemake makes a thing again by, and for which cache; or why not."""
    path, why = str(one.thing.path), "no cache that is there was made of it"
    for names in uses.of(one.thing):
        plan = plans.of(names)
        if isinstance(plan, str):
            why = plan
        elif one.thing.kind == "token shard":
            there = all(Path(made).exists() or made in gone for made in plan.caches)
            if there and one.thing.path.stem in plan.missing:
                return "caches", names, ""
            why = _other_config(one, plan)
        elif path in {**plan.caches, **plan.tokenizers, **plan.fetches}:
            return path, names, ""
        else:
            why = _other_config(one, plan)
    return None, None, why


def _other_config(one: Finding, plan: Plan) -> str:
    """What to say of a thing that the present configuration does not make any more."""
    said = f"the present config makes {', '.join(plan.caches)} instead"
    name = str(one.thing.path)
    for file in sorted(PLANS.glob("*.json"), reverse=True):
        with suppress(OSError, ValueError, KeyError, UserError):
            old = Plan.read(file)
            if name in {**old.caches, **old.tokenizers, **old.fetches} or (
                one.thing.path.stem in old.data["tokens"]
            ):
                return f"{said}; the one that made it is the `config` of {file}"
    return f"{said}; `tokencache trace {one.quarantine or name}` says what it was made of"


def _told(one: Finding) -> Any:
    """What its bytes should be, if that is still known."""
    if one.quarantine is None:
        return None
    return written(Thing(one.thing.kind, Path(one.quarantine), 0))


def _snakemake(words: list[str]) -> None:
    making.check(Path.cwd(), "--repair", shlex.join(["snakemake", *words]))
    print(f"tokencache: {shlex.join(['snakemake', *words])}", file=sys.stderr, flush=True)
    # To stderr: what --json prints stays alone on stdout.
    subprocess.run(
        [sys.executable, "-m", "snakemake", *words],
        env=ranks.environment_of_none(), stdin=subprocess.DEVNULL, stdout=2,
    )  # fmt: skip


def _settle(one: Finding, before: Any) -> None:
    where = f"; the damaged one is {one.quarantine}" if one.quarantine else ""
    if not one.thing.path.exists():
        one.fate = f"it could not be made again, see above{where}"
        return
    wrong = confirmed(one.thing, lambda size: None)
    if wrong:
        one.fate = f"made again, and damaged again: {wrong[0]}{where}"
        return
    if one.quarantine and marks.is_pinned(Path(one.quarantine)):
        marks.pin(one.thing.path)
    now = written(one.thing)
    one.repaired = not (one.by_rows and before == now)
    if not one.repaired:
        one.fate = f"made again, the same bytes, so tokencache is wrong: report it{where}"
        return
    as_before = "" if before is None else f", {'the same' if before == now else 'other'} bytes"
    one.fate = f"made again{as_before}{where}"
