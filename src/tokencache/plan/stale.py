"""What is stale, and which part of its key changed against the nearest one that is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from . import inventory, run_keys
from .plan import Plan

ROWS = 40  # of a table that a person reads; more and the fresh ones are only counted
FRESH, STALE, NEW = "fresh", "stale", "new"
BEHAVIOUR = "library behaviour"
RENDERING = "recipe.rendering"

# What there is, by root, model, data set and max_length ("*" for any).
Found = Callable[[str, str, str, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class FileChange:
    """What became of a source: `said` names it; shards: the numbers, from 0, of the new ones
    among its `of`."""

    path: str
    said: str
    shards: tuple[int, ...] = ()
    of: int = 0


@dataclass(frozen=True)
class Change:
    """A field of a key that is another one than before.

    name: of the field, with dots where it lies deeper. said: in a word. old, new: its values,
    None where it was or is not there; of data, `files` say it.
    """

    name: str
    said: str
    old: Any = None
    new: Any = None
    files: tuple[FileChange, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a target is there, and else what changed against the nearest one that is.

    state: fresh, stale, or new: nothing is there whose place it takes. nearest: the folder
    of the other one; None where there is none.
    """

    state: str
    changes: list[Change] = field(default_factory=list)
    nearest: str | None = None

    def __str__(self) -> str:
        """'fresh', 'new', or 'stale: learning_rate 0.001 → 0.003; weights'."""
        if self.changes:
            return f"{self.state}: {'; '.join(change.said for change in self.changes)}"
        return self.state if self.nearest is None else f"{self.state}: {BEHAVIOUR}"


def table(plan: Plan) -> str:
    """For each (model, dataset, max_length): fresh, or why stale and how much work that is."""
    run_of = {run["cache"]: path for path, run in plan.runs.items()}
    both = [(path, run_of.get(path)) for path in plan.caches]
    stale = [(path, run) for path, run in both if not _is_fresh(plan, path, run)]
    said = f"tokencache: {_count(len(plan.caches), 'cache')} and {_count(len(plan.runs), 'run')}: "
    if not stale:
        return "\n".join([said + "all fresh", *_tokens_left(plan)])
    said += f"{len(both) - len(stale)} of {len(both)} combinations fresh"
    shown = both if len(both) <= ROWS else stale[:ROWS]
    lines = [said, "", tabulate(_rows(plan, shown), headers="keys", disable_numparse=True)]
    if len(shown) < len(stale):
        lines.append(f"… and {len(stale) - len(shown)} more stale ones")
    return "\n".join([*lines, "", *_work(plan), *_notes(plan)])


def _is_fresh(plan: Plan, path: str, run: str | None) -> bool:
    trained = run is None or Path(run).exists()
    return trained and Path(path).exists() and not plan.lacking(path)


def _rows(plan: Plan, shown: list[tuple[str, str | None]]) -> list[dict[str, str]]:
    """Of shown ones alone: what a cache was made of is long, and slow to read and compare."""
    caches_of, runs_of = _remembering(inventory.caches_of), _remembering(inventory.runs_of)
    amounts: dict[tuple[str, ...], str] = {}  # of token sets, which many lengths share
    rows = []
    for path, run in shown:
        entry = plan.caches[path]
        sets = plan.sets_of(entry)
        if sets not in amounts:
            amounts[sets] = _amount(plan, plan.missing_of(entry)) or "-"
        rows.append(
            {
                "model": entry["model"],
                "dataset": entry["dataset"],
                "max_length": str(entry["max_length"]),
                "cache": str(of_cache(plan, path, caches_of)),
                "training": str(of_run(plan, run, runs_of)) if run else "",
                "to tokenize": amounts[sets],
            }
        )
    return rows


def _remembering(find: Found) -> Found:
    """What many rows after each other ask for, all lengths of a name, is read once."""
    return lru_cache(maxsize=2)(find)


def of_cache(plan: Plan, path: str, caches_of: Found = inventory.caches_of) -> Verdict:
    """What became of a cache of the plan, against the nearest one of the same name.

    One of the same length is nearer than all others.
    """
    if Path(path).exists():
        if lacking := plan.lacking(path):
            missing = Change("token shards", "its token shards are missing", None, lacking)
            return Verdict(STALE, [missing])
        return Verdict(FRESH)
    planned, length = plan.provenance(path), str(plan.caches[path]["max_length"])
    name = plan.cache, planned["model"], planned["dataset"]
    older = caches_of(*name, length) or caches_of(*name, "*")
    found = [(_cache_changes(old, planned), old["path"]) for old in older]
    return _against_nearest(found, plan.caches)


def of_run(plan: Plan, path: str, runs_of: Found = inventory.runs_of) -> Verdict:
    """The same for a run, among the runs of the same length."""
    if Path(path).exists():
        return Verdict(FRESH)
    planned = plan.runs[path]
    name = plan.results, planned["model"], planned["dataset"]
    older = runs_of(*name, str(planned["max_length"]))
    packed = plan.caches[planned["cache"]]["packing"] != "none"
    found = [(_run_changes(old, planned, packed), old["path"]) for old in older]
    return _against_nearest(found, plan.runs)


def _against_nearest(found: list[tuple[list[Change], str]], wanted: dict[str, Any]) -> Verdict:
    """One that is still wanted is nobody's place to take: what comes beside it is new."""
    if not found:
        return Verdict(NEW)
    changes, nearest = min(found, key=lambda entry: len(entry[0]))
    return Verdict(NEW if nearest in wanted else STALE, changes, nearest)


def _cache_changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    found = []
    if _keys(old["sources"]) != _keys(new["sources"]):
        files = tuple(_files_changed(old["sources"], new["sources"]))
        said = "data: " + ", ".join(file.said for file in files)
        found.append(Change("data", said, files=files))
    if old["tokenizer"]["key"] != new["tokenizer"]["key"]:
        found.append(_tokenizer_change(old["tokenizer"], new["tokenizer"]))
    recipe = _differences(old["recipe"], new["recipe"], "recipe")
    # With another template, it comes out otherwise by itself.
    found += [change for change in recipe if change.name != RENDERING] or recipe
    before, after = ({"format": "dataset"} | about["settings"] for about in (old, new))
    return found + _differences(before, after, "")


def _run_changes(old: dict[str, Any], new: dict[str, Any], packed: bool) -> list[Change]:
    """Records of the first version say nothing of the template and of the weights' files."""
    before, after = {"version": 1} | old["made_of"], run_keys.made_of(new, packed)
    found = []
    if before["cache"] != after["cache"]:
        found.append(Change("cache", "its cache", before["cache"], after["cache"]))
    found += _differences(before["training"], after["training"], "")
    found += _weights_changes(before, after)
    for name in ("lora", "architecture", "trust_remote_code"):
        if before.get(name) != after.get(name):
            found.append(Change(name, name, before.get(name), after.get(name)))
    last = [name for name in ("chat_template", "tool_template", "version") if name in before]
    return found + _differences({n: before[n] for n in last}, {n: after[n] for n in last}, "")


def _weights_changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Another model, or other bytes of files where it lies: both are named."""
    name = "weights_files" if "weights_files" in before else "weights"
    old, new = before[name], after[name]
    if old == new:
        return []
    said = "weights"
    if before["weights"] == after["weights"]:
        files, others = dict(old), dict(new)
        changed = [n for n in sorted({*files, *others}) if files.get(n) != others.get(n)]
        said += f": {', '.join(changed[:3])}{', …' if changed[3:] else ''}"
    else:
        old, new = before["weights"], after["weights"]
    return [Change("weights", said, old, new)]


def _differences(old: dict[str, Any], new: dict[str, Any], part: str) -> list[Change]:
    """part: what the fields are of, if that has to be said."""
    found, prefix = [], f"{part}: " if part else ""
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "version":
            said = f"{BEHAVIOUR} ({prefix}version {before} → {after})"
        elif f"{part}.{name}" == RENDERING:
            said = f"{BEHAVIOUR} (how chat templates are rendered)"
        elif len(f"{before}{after}") <= 40:
            said = f"{prefix}{name} {before} → {after}"
        else:
            said = f"{prefix}{name}"
        found.append(Change(f"{part}.{name}" if part else name, said, before, after))
    return found


def _tokenizer_change(old: dict[str, Any], new: dict[str, Any]) -> Change:
    before, after = old["parts"], new["parts"]
    if before.keys() != after.keys():
        said, changed = "another kind of one", list(after)
    else:
        changed = [name for name in after if before[name] != after[name]]
        said = BEHAVIOUR if changed == ["probe ids"] else " and ".join(changed)
    values = ({name: parts.get(name) for name in changed} for parts in (before, after))
    return Change("tokenizer", f"tokenizer: {said}", *values)


def _keys(sources: dict[str, list[dict]]) -> dict[str, list[str]]:
    return {
        split: [shard["key"] for file in files for shard in file["shards"]]
        for split, files in sources.items()
    }


def _files_changed(old: dict[str, list[dict]], new: dict[str, list[dict]]) -> Iterator[FileChange]:
    """'qa.jsonl (1 of 12 shards)', '+ b.jsonl', '- c.jsonl'; a renamed file is not named."""
    for split in dict.fromkeys([*old, *new]):
        before, after = _by_file(old.get(split, [])), _by_file(new.get(split, []))
        there = Counter(key for keys in before.values() for key in keys)
        told = False
        for path, keys in after.items():
            fresh = tuple(number for number, key in enumerate(keys) if key not in there)
            if fresh:
                told = True
                name = Path(path).name
                amount = f"{name} ({len(fresh)} of {len(keys)} shards)"
                said = amount if path in before else f"+ {name}"
                yield FileChange(path, said, fresh, len(keys))
        here = {key for keys in after.values() for key in keys}
        for path, keys in before.items():
            if path not in after and not here.intersection(keys):
                told = True
                yield FileChange(path, f"- {Path(path).name}")
        if not told and list(before.values()) != list(after.values()):
            yield FileChange("", "rows taken out, or another order of files")


def _by_file(files: list[dict]) -> dict[str, list[str]]:
    return {file["path"]: [shard["key"] for shard in file["shards"]] for file in files}


def _work(plan: Plan) -> Iterator[str]:
    trained = [f for f, t in plan.tokenizers.items() if "training" in t and not Path(f).exists()]
    needed = {
        plan.shard_of(key).get("fetched") for b in plan.batches.values() for key in b["tokens"]
    }
    needed |= {run["weights_folder"] for f, run in plan.runs.items() if not Path(f).exists()}
    fetched = [entry for f, entry in plan.fetches.items() if f in needed and not Path(f).exists()]
    kinds = Counter("model" if "model" in entry else "data set split" for entry in fetched)
    if kinds:
        yield "to fetch from a hub: " + ", ".join(_count(kinds[what], what) for what in kinds)
    if trained:
        yield f"to train: {_count(len(trained), 'tokenizer')}"
    yield from _tokens_left(plan)
    caches = sum(not Path(path).exists() for path in plan.caches)
    runs = sum(not Path(path).exists() for path in plan.runs)
    yield f"to pack: {_count(caches, 'cache')}; to train: {_count(runs, 'model')}"


def _tokens_left(plan: Plan) -> list[str]:
    if not plan.missing:
        return []
    return [f"to tokenize: {_amount(plan, plan.missing)} in {_count(len(plan.batches), 'job')}"]


def _amount(plan: Plan, tokens: list[str]) -> str:
    """'3 shards, 12.4 MB', or '' for none."""
    if not tokens:
        return ""
    sizes = [plan.shard_of(key)["bytes"] for key in tokens]
    known = "" if None in sizes else f", {sum(sizes) / 1e6:,.1f} MB"
    return f"{_count(len(tokens), 'shard')}{known}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _notes(plan: Plan) -> Iterator[str]:
    """What a user should know of a tokenizer that is about to be used."""
    for entry in {c["tokenizer"]: c for c in plan.caches.values()}.values():
        for note in plan.tokenizers[entry["tokenizer"]]["facts"]["notes"]:
            yield f"note: {entry['model']}: {note}"
