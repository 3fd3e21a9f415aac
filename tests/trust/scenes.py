"""A small experiment with a job of every kind, each with its folder before and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from conftest import make_tokenizer
from helpers.workflow import TINY, rows, write_rows

from .actions import PLANNED
from .trials import Trials, tree

CONFIG = {
    "shard_size": 8192,
    "tokenizers": {"words": {"dataset": "qa", "vocab_size": 300}},
    "models": {
        "given": {"tokenizer": "tokenizer", "architecture": TINY},
        "own": {"tokenizer": "words"},
    },
    "datasets": {
        "qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}},
        "hub": {"hub": "saved", "document": {"text": "{prompt}"}, "validation": None},
    },
    "max_length": [32],
    "build": [
        {"model": "given", "dataset": "qa"},
        {"model": "given", "dataset": "hub"},
        {"model": "own", "dataset": "qa"},
    ],
    "training": {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2},
}
# As with data of many gigabytes: a cache is written in parts.
IN_PARTS = {
    "tokencache.plan.resolve.BYTES_IN_A_PART": 6000,
    "tokencache.caches.dataset.TOKENS_IN_A_FILE": 500,
}
PLAN = "trust.actions:plan"


@dataclass(frozen=True)
class Job:
    """A job that was done undisturbed: its words, the folder before it, and all that it made."""

    name: str
    words: tuple[Any, ...]
    before: Path
    after: Path
    settings: dict[str, Any]
    config: str

    @cached_property
    def made(self) -> dict[str, bytes | None]:
        return tree(self.after)


class Scene:
    """The experiment in a folder, done job by job."""

    def __init__(self, folder: Path, trials: Trials, config: dict[str, Any] = CONFIG) -> None:
        self.folder, self._trials = folder, trials
        start = folder / "start"
        start.mkdir(parents=True)
        make_tokenizer("bos_eos", start / "tokenizer")
        write_rows(start / "data.jsonl", rows(120))
        write_rows(start / "saved/train.jsonl", rows(40, seed=500))
        (start / "config.yaml").write_text(yaml.safe_dump(config))
        (start / "view.yaml").write_text(yaml.safe_dump(config | {"format": "view"}))
        few = config | {"build": [{"model": "given", "dataset": "qa"}]}
        (start / "few.yaml").write_text(yaml.safe_dump(few))
        self.start = start
        self._last, self._number, self._config = start, 0, "config.yaml"

    def do(self, name: str, *words: Any, settings: dict[str, Any] | None = None) -> Job:
        """One job after those before it; each leaves a folder of its own."""
        self._number += 1
        after = self.folder / str(self._number)
        shutil.copytree(self._last, after, symlinks=True)
        ended = self._trials.run(after, *words, settings=settings)
        assert ended.fine, (name, ended)
        job = Job(name, words, self._last, after, settings or {}, self._config)
        self._last = after
        return job

    def plan(
        self, config: str = "config.yaml", **more: Any
    ) -> tuple[Job, str, dict[str, list[str]]]:
        self._config = config
        job = self.do(f"plan {config}", PLAN, config, **more)
        found = json.loads((job.after / PLANNED).read_text())
        return job, found["plan"], found["jobs"]

    def jobs(self) -> Iterator[Job]:
        """Every kind of job, in order: planning, the stages, a view, and a cache in parts."""
        job, plan, todo = self.plan()
        yield job
        for stage in ("fetch", "materialize-tokenizer", "train-tokenizer", "tokenize", "pack"):
            for target in todo[stage]:
                yield self.do(stage, stage, "--plan", plan, target)
        yield self.do("train", "train", "--plan", plan, todo["train"][0])
        job, plan, todo = self.plan("view.yaml")
        yield self.do("pack of a view", "pack", "--plan", plan, todo["pack"][0])
        self._last = shutil.copytree(self._last, self.folder / "without")
        for found in self._last.glob("cache/given/qa/*"):
            shutil.rmtree(found)
        job, plan, todo = self.plan(settings=IN_PARTS)
        yield job
        some = [part for part in todo["pack-part"] if "/qa/" in part and "/given/" in part]
        assert len(some) > 1, todo
        for part in some:
            yield self.do("pack-part", "pack-part", "--plan", plan, part, settings=IN_PARTS)
        cache = next(c for c in todo["pack"] if "/qa/" in c and "/given/" in c)
        yield self.do("pack of parts", "pack", "--plan", plan, cache, settings=IN_PARTS)


def kinds(jobs: Iterator[Job]) -> list[Job]:
    """The first job of each kind."""
    found: dict[str, Job] = {}
    for job in jobs:
        found.setdefault(job.name, job)
    return list(found.values())
