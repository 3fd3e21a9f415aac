"""Several who make, read and delete the same things at once."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from conftest import make_tokenizer
from helpers.workflow import Workflow, environment, rows

from . import all_or_nothing
from .trials import Trials, copied, difference, published, tree

ALL, READ, ROWS = "trust.actions:everything", "trust.actions:read", "rows.json"
CONFIG = {
    "cache": "../cache",
    "shard_size": 8192,
    "models": {"one": {"tokenizer": "tokenizer"}},
    "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32, 64],
}


def workflow(folder: Path, **more) -> Workflow:
    make_tokenizer("bos_eos", folder / "tokenizer")
    return Workflow.new(folder, CONFIG | more, {"data.jsonl": rows(200)})


def test_builders_and_readers_at_once(net, trials: Trials, tmp_path):
    """Three make the same caches from nothing and two read them, over and over."""
    fresh = workflow(tmp_path / "fresh", cache="cache").folder
    with copied(fresh) as folder:
        assert trials.run(folder, ALL, "config.yaml").fine
        assert trials.run(folder, READ, "one", "qa", 32, ROWS).fine
        wanted, read = tree(folder), json.loads((folder / ROWS).read_text())
    for number in range(40 if net.full else 2):
        with copied(fresh) as folder:
            builders = []
            for _ in range(3):
                builders.append(trials.start(folder, ALL, "config.yaml"))
                time.sleep(net.draw.uniform(0, 0.2))
            readers = []
            while len(readers) < 6:
                ended = trials.run(folder, READ, "one", "qa", 32, f"{len(readers)}-{ROWS}")
                right = ended.told
                if ended.fine:
                    right = json.loads((folder / f"{len(readers)}-{ROWS}").read_text()) == read
                readers.append(right)
                net.check(right, f"round {number}, a reader: {ended.status} {ended.said[-1500:]}")
            for builder in builders:
                ended = trials.wait(builder)
                again = ended.told and "another process made it" in ended.said
                net.check(
                    ended.fine or again,
                    f"round {number}, a builder: {ended.status} {ended.said[-1500:]}",
                )
            wrong = difference(tree(folder), wanted)
            net.check(not wrong, f"round {number}: {wrong}")


@all_or_nothing
def test_workflows_readers_and_cleaners_at_once(net, trials: Trials, tmp_path):
    """Two workflows share a cache folder with one who reads and one whose `gc --delete` knows
    of neither."""
    shared = tmp_path / "shared"
    one, two = workflow(shared / "one"), workflow(shared / "two", max_length=[32, 48])
    cleaner = workflow(shared / "cleaner", max_length=[16])
    assert trials.run(cleaner.folder, ALL, "config.yaml").fine
    own = published(tree(shared))

    def start(made: Workflow) -> subprocess.Popen:
        return subprocess.Popen(
            made.command("caches"), cwd=made.folder, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    wanted = {}
    deadline = time.monotonic() + 300
    number = 0
    while time.monotonic() < deadline:
        number += 1
        running = []
        for made in (one, two):
            running.append(start(made))
            time.sleep(net.draw.uniform(0, 3))
        while any(process.poll() is None for process in running):
            for words in (("gc", "--delete"), ("list",), ("verify",)):
                ended = trials.run(cleaner.folder, *words)
                right = ended.status in (0, 1) and "Traceback" not in ended.said
                net.check(right, f"round {number}, {words}: {ended.status} {ended.said[-1500:]}")
            ended = trials.run(one.folder, READ, "one", "qa", 32, ROWS)
            net.check(ended.fine or ended.told, f"a reader: {ended.status} {ended.said[-1500:]}")
        for process in running:
            said = process.communicate()[0]
            net.check(process.returncode == 0, f"round {number}, a workflow: {said[-2500:]}")
        found = published(tree(shared))
        wanted = wanted or found
        wrong = difference(found, wanted) or own.keys() - found.keys()
        net.check(not wrong, f"round {number}: {wrong}")
        if number % 2:  # half of the rounds begin with nothing
            ended = trials.run(cleaner.folder, "gc", "--delete")
            net.check(ended.fine, f"round {number}, gc: {ended.said[-1500:]}")
