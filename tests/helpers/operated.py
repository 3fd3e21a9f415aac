"""A folder with three caches and a view of the same token shards, and a run on one of them."""

from __future__ import annotations

import os
from contextlib import chdir
from unittest import mock

from conftest import make_tokenizer

from helpers.workflow import TINY, Workflow, rows
from tokencache.cli import main
from tokencache.config.load import load
from tokencache.plan.resolve import resolve

CONFIG = {
    "models": {
        "one": {"tokenizer": "tokenizer"},
        "two": {"tokenizer": "tokenizer", "architecture": TINY, "training": {"max_steps": 1}},
    },
    "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32, 48],
    "build": [{"model": "two", "max_length": 32}],
    "shard_size": "4 KB",
}
ONES = CONFIG | {"build": [{"model": "one"}]}
VIEW = CONFIG | {"build": [{"model": "one", "max_length": 32}], "format": "view"}


def make(folder, config):
    """The caches of a configuration whose token shards are there, by the commands of its jobs."""
    with chdir(folder), mock.patch.dict(os.environ):  # the settings of a job are its own
        plan = resolve(load(config))
        plan.write()
        for path in plan.caches:
            assert main(["pack", "--plan", plan.path, path]) == 0


def made_in(folder):
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, CONFIG, {"data/a.jsonl": rows(80)})
    workflow.run()
    make(folder, ONES)
    make(folder, VIEW)
    return workflow
