"""The plan: every target, its path, its key and what the key is made of, as one JSON file.

Made once (by `resolve`) in the process that the user started; jobs only read it.
This module alone knows paths.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..base.credentials import hidden
from ..base.hashing import key_of
from ..base.json_files import json_text
from ..base.publish import make_folder, published
from ..base.version import __version__
from ..errors import UserError

WORK = Path(".tokencache")
INDEX = WORK / "index.sqlite"
PLANS = WORK / "plans"
PLANNING = WORK / "planning"
LOGS = Path("logs")
LIBRARIES = ("numpy", "pyarrow", "tokenizers")
CHECKSUM = "checksum of what follows"  # in a plan file
WORKFLOW = ("workflow", "snakemake")  # stage and target of the process that starts the jobs
ID_TIME = "%Y%m%d-%H%M%S"  # a plan's ID begins with when it was made
NAME_DIGITS = 12  # of a key in the names of caches and runs, which stand beside few others


def own_folders(cache: str, results: str) -> list[str]:
    """The folders that a workflow writes to: nothing in them is data of the user's."""
    return [cache, results, str(LOGS), str(WORK), ".snakemake"]


def tokenizer_path(cache: str, key: str) -> str:
    return f"{cache}/tokenizers/{key}"


def fetched_path(cache: str, key: str) -> str:
    return f"{cache}/sources/{key}"


def tokens_path(cache: str, tokenizer: str, key: str) -> str:
    return f"{cache}/tokens/{tokenizer}/{key[:2]}/{key}.arrow"


def target_path(root: str, model: str, dataset: str, max_length: int, key: str) -> str:
    """Of a cache (below the cache folder) or a run (below the results folder)."""
    return f"{root}/{model}/{dataset}/{max_length}-{key[:NAME_DIGITS]}"


def building_path(target: Path) -> Path:
    """Where those who make or wait for a cache or a run meet."""
    return target.parent / f".{target.name}.building"


def parts_path(cache: str) -> Path:
    """Where the parts of a large cache stand until it is made of them."""
    return Path(cache).parent / f".{Path(cache).name}.parts"


def checkpoints_path(run: str) -> Path:
    """Where a run that is not finished keeps what it needs to go on."""
    return Path(run).parent / f".{Path(run).name}.checkpoints"


def made_at(plan: Path) -> float:
    """When a plan was made. Its file's time tells when its workflow was heard of last.

    Raises ValueError for a file that is not called as a plan is.
    """
    return time.mktime(time.strptime(plan.stem.rpartition("-")[0], ID_TIME))


def progress_folder(plan: str) -> Path:
    """Where the running jobs of a plan say how far they are; plan: its ID."""
    return WORK / "progress" / plan


def progress_path(plan: str, stage: str, target: str) -> Path:
    """The progress file of one job."""
    return progress_folder(plan) / f"{stage}-{key_of([stage, target])[:NAME_DIGITS]}.json"


def records_path(run: str | Path) -> Path:
    """Where MLflow keeps the records of all runs in a results folder."""
    return Path(run).parents[2] / "mlflow.db"


def files_of(shards: Iterable[dict[str, Any]]) -> list[str]:
    """The files (or folders of fetched data sets) that source shards lie in."""
    return list(dict.fromkeys(shard.get("fetched") or shard["path"] for shard in shards))


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import version  # with all of email

    return {"tokencache": __version__} | {name: version(name) for name in LIBRARIES}


def _sealed(data: dict[str, Any]) -> str:
    """The text of a plan file. Its second line has the checksum of all that follows: a plan with
    one other bit could have a job publish other bytes under a key."""
    start, rest = "{\n", json_text(data).removeprefix("{\n")
    return f'{start} "{CHECKSUM}": "{_checksum(rest)}",\n{rest}'


def _opened(text: str) -> dict[str, Any]:
    """The contents of a plan file. Raises ValueError for one that is not as it was written."""
    data = json.loads(text)
    checksum = data.pop(CHECKSUM, None)
    if checksum is None and "id" in data:  # an earlier version wrote it
        return data
    if checksum != _checksum("\n".join(text.split("\n", 2)[2:])):
        raise ValueError("its checksum differs")
    return data


def _checksum(text: str) -> str:
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


COMPARED_SHARDS = 4  # see Plan.compared_tokens


class Plan:
    """The contents of a plan file; `data` is plain JSON.

    caches, runs: by target path. tokenizers, fetches: by folder. batches: the
    missing token shards by job. token_sets: the token shards of one data set by
    one tokenizer and recipe. tokens, shards, recipes: by key. sources: of each data
    set's splits the files with their shards, in order; a shard that several files
    share stands in each of them.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.path = str(PLANS / f"{data['id']}.json")
        self.cache: str = data["config"]["cache"]
        self.results: str = data["config"]["results"]
        self.caches: dict[str, dict[str, Any]] = data["caches"]
        self.runs: dict[str, dict[str, Any]] = data["runs"]
        self.tokenizers: dict[str, dict[str, Any]] = data["tokenizers"]
        self.fetches: dict[str, dict[str, Any]] = data["fetches"]
        self.batches: dict[str, dict[str, Any]] = data["batches"]
        self.token_sets: dict[str, dict[str, Any]] = data["token_sets"]
        self._sources_of: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = {}
        self._missing_of: dict[tuple[str, ...], list[str]] = {}

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        try:
            return cls(_opened(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"there is no plan {path}; run snakemake, which makes one") from None
        except PermissionError:
            raise UserError(
                f"you may not read the plan {path}: one with credentials in "
                "training.mlflow.tracking_uri can be read by its own user only. Run snakemake "
                "yourself, which makes one of your own"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"the plan {path} is damaged, or another version of tokencache made it; run "
                "snakemake again, which makes a new one"
            ) from None

    @classmethod
    def newest(cls) -> Plan:
        plans = sorted(PLANS.glob("*.json"))
        if not plans:
            raise UserError(f"there is no plan in {PLANS}; run snakemake, which makes one")
        return cls.read(plans[-1])

    def write(self) -> None:
        """Write the plan file, which jobs read."""
        with published(self.path, private=self._has_credentials()) as temporary:
            temporary.write_text(_sealed(self.data), encoding="utf-8")

    def _has_credentials(self) -> bool:
        """Whether jobs find in the plan what nobody else should."""
        trackings = (run["training"]["mlflow"] or {} for run in self.runs.values())
        uris = (tracking.get("tracking_uri") or "" for tracking in trackings)
        return any(hidden(uri) != uri for uri in uris)

    def make_folders(self) -> None:
        """The folders that targets stand in: Snakemake would make them as the umask says.

        Raises UserError where that is not allowed.
        """
        missing = [path for path in self.caches if not Path(path).exists()]
        parts = [part for path in missing for part in self.parts_of(path)]
        for target in [*self.caches, *self.runs, *self.tokenizers, *self.fetches, *parts]:
            make_folder(Path(target).parent)

    def mark(self, batch: str) -> str:
        """A file that says that this plan's batch is done."""
        return str(WORK / "done" / self.data["id"] / batch)

    def progress_path(self, stage: str, target: str) -> Path:
        """The progress file of one of this plan's jobs."""
        return progress_path(self.data["id"], stage, target)

    def set_mark(self, token_set: str) -> str:
        """A file that says that all batches that a token set waits for are done."""
        return self.mark(f"sets/{token_set}")

    def remove_marks(self) -> None:
        for folder in (Path(self.mark("")), progress_folder(self.data["id"])):
            shutil.rmtree(folder, ignore_errors=True)

    def tokens_path(self, key: str) -> str:
        return tokens_path(self.cache, self.data["tokens"][key]["tokenizer"], key)

    def shard_of(self, tokens: str) -> dict[str, Any]:
        """The source shard that a token shard is made from."""
        return self.data["shards"][self.data["tokens"][tokens]["shard"]]

    def shared_keys(self) -> list[str]:
        """Of the token shards, tokenizers and fetched data: what caches share."""
        folders = [*self.tokenizers, *self.fetches]
        return [*self.data["tokens"], *(Path(folder).name for folder in folders)]

    def tokenizer_keys(self, trained: bool) -> list[str]:
        """Of the tokenizers that the workflow trains, or of those that are given."""
        entries = self.tokenizers.values()
        return [entry["facts"]["key"] for entry in entries if ("training" in entry) == trained]

    def compared_tokens(self, tokenizer: str) -> list[str]:
        """A few missing token shards that the tokenizer in a folder will make: its saved files
        are compared on their documents."""
        found = [
            key
            for batch in self.batches.values()
            if batch["tokenizer"] == tokenizer
            for key in batch["tokens"]
        ]
        return found[:: max(1, len(found) // COMPARED_SHARDS)][:COMPARED_SHARDS]

    def batches_of(self, token_set: str) -> list[str]:
        return self._batches_of.get(token_set, [])

    @cached_property
    def _batches_of(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, batch in self.batches.items():
            for token_set in batch["token_sets"]:
                found.setdefault(token_set, []).append(name)
        return found

    def parts_of(self, cache: str) -> list[str]:
        """The folders that several jobs write a large cache into; none for others."""
        count = self.caches[cache]["parts"]
        names = (f"{number:03d}-of-{count:03d}" for number in range(count if count > 1 else 0))
        return [str(parts_path(cache) / name) for name in names]

    def cache_of(self, part: str) -> str:
        """The cache that a part is of; the part itself where it is none."""
        return self._cache_of.get(part, part)

    @cached_property
    def _cache_of(self) -> dict[str, str]:
        return {part: cache for cache in self.caches for part in self.parts_of(cache)}

    def sets_of(self, cache: dict[str, Any]) -> tuple[str, ...]:
        """The token sets of a cache's entry: one, or those of its sources and its targets."""
        target = cache["target_set"]
        return (cache["token_set"], *([target] if target else []))

    def lacking(self, cache: str) -> list[str]:
        """The token shards without which a view that is there can't be read."""
        entry = self.caches[cache]
        return self.missing_of(entry) if entry.get("format") == "view" else []

    def missing_of(self, cache: dict[str, Any]) -> list[str]:
        """The token shards of a cache's entry that are not there yet."""
        sets = self.sets_of(cache)
        if sets not in self._missing_of:
            splits = [keys for s in sets for keys in self.token_sets[s]["splits"].values()]
            found = dict.fromkeys(key for keys in splits for key in keys if key in self.missing)
            self._missing_of[sets] = list(found)
        return self._missing_of[sets]

    @cached_property
    def missing(self) -> set[str]:
        """The token shards that are not there yet."""
        return {key for batch in self.batches.values() for key in batch["tokens"]}

    def provenance(self, path: str) -> dict[str, Any]:
        """Everything that a cache is made of, for its cache.json; the same on every machine."""
        cache = self.caches[path]
        recipes = [
            self.data["recipes"][self.token_sets[key]["recipe"]] for key in self.sets_of(cache)
        ]
        names = ("version", "max_length", "overflow", "truncation_side", "packing", "validation",
                 "format")  # fmt: skip
        return {
            "key": cache["key"],
            "rows_key": cache["rows_key"],
            "model": cache["model"],
            "dataset": cache["dataset"],
            "settings": {name: cache[name] for name in names if name in cache},
            "tokenizer": self.tokenizers[cache["tokenizer"]]["facts"],
            "recipe": {"source": recipes[0], "target": recipes[1]} if recipes[1:] else recipes[0],
            "sources": self._sources(self.sets_of(cache)),
            "versions": _versions(),
            "command": f"snakemake {path}",
        }

    def _sources(self, sets: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
        """Each split's files with their shards' keys and the keys of their token shards."""
        if sets not in self._sources_of:
            splits = [self.token_sets[token_set]["splits"] for token_set in sets]
            files = self.data["sources"][self.token_sets[sets[0]]["dataset"]]
            self._sources_of[sets] = {
                name: self._by_file(files[name], *(split[name] for split in splits))
                for name in splits[0]
            }
        return self._sources_of[sets]

    def _by_file(
        self, files: list[dict[str, Any]], tokens: list[str], targets: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """tokens, targets: the keys of the token shards of all files, in order."""
        keys = zip_longest(tokens, targets)
        found = []
        for file in files:
            shards = []
            for name, (key, target) in zip(file["shards"], keys, strict=False):
                shard = self.data["shards"][name]
                about = {"key": shard["key"], "tokens": key, "bytes": shard["bytes"]}
                shards.append(about | ({"target_tokens": target} if target else {}))
            found.append({"path": file["path"], "shards": shards})
        return found
