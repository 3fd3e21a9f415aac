"""What a dry run and a job's start cost: by counts, which do not depend on the machine."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import make_tokenizer
from helpers.workflow import Workflow, rows, write_rows

from tokencache.base.json_files import write_json
from tokencache.base.processes import process_tag
from tokencache.config.load import load
from tokencache.plan import inventory, resources, stale
from tokencache.plan.resolve import resolve
from tokencache.sources import index
from tokencache.workflow import leftovers

FEW, MANY = 2, 8  # lengths
MODELS = ("one", "two")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("byte_level", tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Files that are new are remembered all the same: what is counted is a second look at them.
    monkeypatch.setattr(index, "SETTLED_SECONDS", -60.0)
    return tmp_path


def planned(tokenizer, files, lengths):
    """The plan for so many files, each a shard, at so many lengths."""
    for number in range(files):
        path = Path(f"rows-{files}", f"{number}.jsonl")
        if not path.exists():
            write_rows(path, rows(3, number * 10))
    return resolve(
        load(
            {
                "models": {name: {"tokenizer": str(tokenizer)} for name in MODELS},
                "datasets": {"qa": {"files": [f"rows-{files}"], "document": {"text": "prompt"}}},
                "max_length": [16 + 8 * number for number in range(lengths)],
            }
        )
    )


def pretend(plan):
    """As if all had been made."""
    for path in plan.caches:
        write_json(Path(path, "cache.json"), plan.provenance(path))
    for key in plan.data["tokens"]:
        path = Path(plan.tokens_path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def calls(tokenizer, files, lengths):
    """Calls of functions, of Python and C, for a plan, its table and what its jobs ask for."""
    seen = Counter()
    sys.setprofile(lambda frame, event, argument: seen.update([event]))
    try:
        plan = planned(tokenizer, files, lengths)
        stale.table(plan)
        for path in plan.caches:
            resources.packing(plan, path)
    finally:
        sys.setprofile(None)
    return seen["call"] + seen["c_call"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_further_length_costs_the_same_with_any_number_of_shards(folder, tokenizer, fresh):
    more = {}
    for files in (10, 100):
        plan = planned(tokenizer, files, MANY)
        if fresh:
            pretend(plan)
        calls(tokenizer, files, MANY)  # what is imported and computed once
        few, many = (calls(tokenizer, files, lengths) for lengths in (FEW, MANY))
        more[files] = (many - few) / (MANY - FEW) / len(MODELS)
    assert more[100] < 1.2 * more[10]


def test_a_cache_s_past_is_read_for_the_rows_that_are_shown_alone(folder, tokenizer, monkeypatch):
    pretend(planned(tokenizer, 5, MANY))
    read = Counter()

    def counted(path):
        read[str(path)] += 1
        return json.loads(Path(path).read_text())

    monkeypatch.setattr(inventory, "read_json", counted)
    monkeypatch.setattr(stale, "ROWS", 3)
    write_rows(folder / "rows-5" / "4.jsonl", rows(4))
    table = stale.table(planned(tokenizer, 5, MANY))
    assert table.count("stale: data: 4.jsonl (1 of 1 shards)") == 3
    assert "… and 13 more stale ones" in table
    assert list(read.values()) == [1, 1, 1]


def test_a_new_length_is_compared_with_the_newest_caches_once(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(inventory, "NEWEST", 4)
    before = planned(tokenizer, 5, MANY)
    pretend(before)
    for age, path in enumerate(reversed(before.caches)):
        os.utime(Path(path, "cache.json"), (10**9 - age, 10**9 - age))
    read = Counter()

    def counted(path):
        read[str(path)] += 1
        return json.loads(Path(path).read_text())

    monkeypatch.setattr(inventory, "read_json", counted)
    table = stale.table(planned(tokenizer, 5, MANY + 3))
    # The last ones are the newest.
    assert table.count("new: max_length 72 →") == len(MODELS) * 3
    assert sorted(read.values()) == [1] * len(MODELS) * 4


def test_a_cache_of_the_same_length_is_the_nearest(folder, tokenizer):
    """Also where one of another length has the data of now."""
    pretend(planned(tokenizer, 5, 1))
    write_rows(folder / "rows-5" / "4.jsonl", rows(4))
    plan = planned(tokenizer, 5, 2)
    other = next(path for path, entry in plan.caches.items() if entry["max_length"] == 24)
    write_json(Path(other, "cache.json"), plan.provenance(other))
    first = stale.table(plan).splitlines()[4]
    assert first.split()[:3] == ["one", "qa", "16"]
    assert "stale: data: 4.jsonl (1 of 1 shards)" in first


@pytest.fixture
def many_batches(tmp_path, tokenizer):
    """A workflow in which each of four shards is a job."""
    config = {
        "models": {"m": {"tokenizer": str(tokenizer)}},
        "datasets": {"qa": {"files": ["rows"], "document": {"text": "prompt"}}},
        "max_length": [16, 32, 64],
    }
    data = {f"rows/{number}.jsonl": rows(5, number * 10) for number in range(4)}
    workflow = Workflow.new(tmp_path, config, data)
    place = "src/tokencache/plan/token_jobs.py"
    workflow.edit(place, "SHARDS_IN_A_JOB = 256", "SHARDS_IN_A_JOB = 1")
    return workflow


def test_a_cache_waits_for_one_file_however_many_batches(many_batches):
    shown = many_batches.run("-n")
    inputs = [line for line in shown.splitlines() if line.startswith("    input: ")]
    waiting = [line for line in inputs if "/sets/" in line]
    assert len(waiting) == 4  # the three caches, and all of them
    assert sum(line.count(".tokencache/done/") for line in waiting) == 4
    assert many_batches.rerun() == {"materialize_tokenizer": 1, "tokenize": 4, "pack": 3}


def test_a_job_needs_no_source_but_its_own(many_batches):
    """Nor config.yaml, nor the index: it looks its work up in the plan."""
    many_batches.edit("rules/tokenize.smk", "tokencache tokenize", "false; tokencache tokenize")
    many_batches.run("caches", fails=True)
    [plan] = (many_batches.folder / ".tokencache/plans").iterdir()
    data = json.loads(plan.read_text())
    [key] = data["batches"]["qa-0003"]["tokens"]
    own = data["shards"][data["tokens"][key]["shard"]]["path"]
    for path in (many_batches.folder / "rows").iterdir():
        if path.name != Path(own).name:
            path.unlink()
    (many_batches.folder / ".tokencache/index.sqlite").unlink()
    (many_batches.folder / "config.yaml").rename(many_batches.folder / "gone.yaml")
    many_batches.tokencache("tokenize", "--plan", str(plan), "qa-0003")
    assert many_batches.token_shards() == {f"{key}.arrow"}
    assert yaml.safe_load((many_batches.folder / "gone.yaml").read_text())["models"]


def test_a_plan_removes_nothing(folder, tokenizer):
    """Not even what killed jobs left; a workflow's start does."""
    plan = planned(tokenizer, 2, 1)
    key = next(iter(plan.data["tokens"]))
    place, number, ticks = process_tag().split("-")
    shard = Path(plan.tokens_path(key))
    left = shard.with_name(f".{shard.name}.{place}-{number}-{int(ticks) - 1}.abc.tmp")
    left.mkdir(parents=True)
    stale.table(planned(tokenizer, 2, 1))
    assert left.exists()
    leftovers.take(plan)
    assert not left.exists()
