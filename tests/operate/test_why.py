"""What is said of a stale cache: which field of its key changed, and what making it will cost."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import chdir

import pytest
from helpers.operated import CONFIG, ONES, make
from helpers.workflow import rows, write_rows

from tokencache.cli import main
from tokencache.config.load import load
from tokencache.plan import costs, stale
from tokencache.plan.plan import PLANS
from tokencache.plan.resolve import resolve

pytestmark = pytest.mark.xdist_group("operated")
ROWS = list(rows(80))


@pytest.fixture
def copy(operated, tmp_path):
    return operated.copy(tmp_path / "w")


@pytest.fixture
def told(capsys):
    def tell(workflow, *words, status=0):
        with chdir(workflow.folder):
            assert main(["why", *words]) == status
        said = capsys.readouterr()
        return said.err if status else said.out

    return tell


def asked(told, workflow, *words):
    return json.loads(told(workflow, *words, "--json"))


def test_what_is_fresh(operated, told):
    [about] = asked(told, operated, "two", "qa", "32")
    assert (about["state"], about["runs"][0]["state"]) == ("fresh", "fresh")
    assert "fresh (results/two/qa/32-" in told(operated, "two", "qa", "32")
    assert "did you mean 'qa'?" in told(operated, "two", "q", status=1)
    assert "0 is no number of tokens" in told(operated, "two", "qa", "0", status=1)


def test_what_takes_the_place_of_nothing_is_new(operated, told):
    """Without a length, all of config.yaml are told."""
    found = asked(told, operated, "two", "qa")
    assert [(about["max_length"], about["state"]) for about in found] == [
        (32, "fresh"),
        (48, "new"),
    ]
    assert [change["said"] for change in found[1]["changes"]] == ["max_length 32 → 48"]


def test_a_changed_row_a_setting_and_a_recipe(copy, told):
    changed = [row | {"completion": row["completion"] + " more"} if n == 40 else row
               for n, row in enumerate(ROWS)]  # fmt: skip
    write_rows(copy.folder / "data/a.jsonl", changed)
    text = {"text": "{prompt}\n{completion}"}
    qa = CONFIG["datasets"]["qa"] | {"document": text, "overflow": "drop"}
    config = ONES | {"datasets": {"qa": qa}}
    copy.configure(config)
    [about] = asked(told, copy, "one", "qa", "32")
    assert about["state"] == "stale" and about["nearest"].startswith("cache/one/qa/32-")
    data, recipe, overflow = about["changes"]
    assert (overflow["field"], overflow["old"], overflow["new"]) == ("overflow", "truncate", "drop")
    assert recipe["field"] == "recipe.text" and (recipe["old"][1], recipe["new"][1]) == (" ", "\n")
    [file] = data["files"]
    assert file["path"] == "data/a.jsonl" and len(file["shards"]) == 1
    [shard] = file["shards"]
    lines = (copy.folder / "data/a.jsonl").read_bytes()[shard["start"] : shard["stop"]]
    assert changed[40]["prompt"] in lines.decode() and shard["number"] <= file["of"]
    with chdir(copy.folder):
        table = stale.table(resolve(load(config)))
    assert "; ".join(change["said"] for change in about["changes"]) in table


def test_the_changed_shard_is_named_by_its_rows(copy, told):
    copy.configure(ONES)
    changed = [row | {"completion": "another"} if n == 40 else row for n, row in enumerate(ROWS)]
    write_rows(copy.folder / "data/a.jsonl", changed)
    [about] = asked(told, copy, "one", "qa", "48")
    shard = about["changes"][0]["files"][0]["shards"][0]
    before = (copy.folder / "data/a.jsonl").read_bytes()[: shard["start"]]
    assert shard["first_row"] == before.count(b"\n") + 1
    said = told(copy, "one", "qa", "48")
    assert f"bytes {shard['start']:,} to {shard['stop']:,}, from row {shard['first_row']}" in said
    assert about["cost"]["shards"] == 1 and about["cost"]["source_bytes"] == shard["bytes"]
    assert f"to tokenize: 1 shard, {shard['bytes'] / 1000:.1f} kB; about " in said


def test_the_cost_of_a_new_length_is_near_what_it_comes_to(copy, told):
    config = ONES | {"max_length": [40], "build": [{"model": "one"}]}
    copy.configure(config)
    [about] = asked(told, copy, "one", "qa", "40")
    cost = about["cost"]
    assert about["state"] == "stale" and [c["field"] for c in about["changes"]] == ["max_length"]
    assert (cost["shards"], cost["tokenize_seconds"], cost["tokens_bytes"]) == (0, 0.0, 0.0)
    assert 0 < cost["pack_seconds"] < 60
    make(copy.folder, config)
    [cache] = copy.folder.glob("cache/one/qa/40-*")
    files = json.loads((cache / "cache.json").read_text())["files"].values()
    assert cost["cache_bytes"] == pytest.approx(sum(file["bytes"] for file in files), rel=0.2)


def test_a_workflow_that_ran_for_minutes_measured_its_jobs(copy):
    """It touches its plan every minute, also after its tokenize jobs have ended."""
    with chdir(copy.folder):
        before = costs.tokenizing()
        for plan in PLANS.glob("*.json"):
            os.utime(plan)
        assert before and costs.tokenizing() == before


def test_where_nothing_was_measured_that_is_said(copy, told):
    copy.configure(ONES | {"max_length": [40]})
    shutil.rmtree(copy.folder / "logs")
    shutil.rmtree(copy.folder / "cache")
    [about] = asked(told, copy, "one", "qa", "40")
    assert about["state"] == "new" and about["nearest"] is None
    assert [about["cost"][name] for name in ("tokenize_seconds", "cache_bytes")] == [None, None]
    said = told(copy, "one", "qa", "40")
    assert said.count("was not measured here yet") == 2 and "not known" in said
