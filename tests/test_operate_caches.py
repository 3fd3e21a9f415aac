"""What is said of caches on disk and done to them: list, stats, clear, pin, gc."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import chdir
from datetime import datetime
from unittest import mock

import pytest
from conftest import make_tokenizer
from workflow import TINY, Workflow, rows

from tokencache import inventory
from tokencache.cli import main
from tokencache.config import load
from tokencache.files import read_json, write_json
from tokencache.operate import list as list_verb
from tokencache.resolve import resolve
from tokencache.view import open_cache

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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three caches and a view of the same ten token shards, and a run on one of them."""
    folder = tmp_path_factory.mktemp("operate") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, CONFIG, {"data/a.jsonl": rows(80)})
    workflow.run()
    make(folder, ONES)
    make(folder, VIEW)
    return workflow


@pytest.fixture
def told(made, capsys):
    """What a verb prints in the folder of `made` or, if given, of another one."""

    def tell(*words: str, folder=made.folder, fails: bool = False) -> str:
        with chdir(folder):
            status = main(list(words))
        said = capsys.readouterr()
        assert (status != 0) == fails, said
        return said.out + said.err if fails else said.out

    return tell


def named(caches: list[dict]) -> Iterator[str]:
    return (cache["name"].partition("-")[0] for cache in caches)


def test_list_names_every_cache(made, told):
    listed = json.loads(told("list", "--json"))
    assert {cache["name"] for cache in listed} == made.targets()
    assert list(named(listed)) == ["one/qa/32", "one/qa/32", "one/qa/48", "two/qa/32"]
    assert sorted(cache["format"] for cache in listed) == ["dataset"] * 3 + ["view"]
    for cache in listed:
        folder = made.folder / cache["path"]
        about = read_json(folder / "cache.json")
        assert cache["tokens"] == sum(split["tokens"] for split in about["splits"].values())
        assert (cache["documents"], cache["versions"]) == (80, about["versions"])
        assert cache["command"] == f"snakemake {cache['path']}"
        on_disk = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert cache["bytes"] == sum(on_disk)
        made_at = datetime.fromisoformat(cache["made"]).timestamp()
        assert time.time() - 600 < made_at <= time.time()


def test_list_says_which_runs_used_a_cache_and_when(made, told):
    listed = json.loads(told("list", "two", "--json"))
    [run] = (made.folder / "results").glob("two/qa/32-*")
    assert [cache["runs"] for cache in listed] == [[str(run.relative_to(made.folder))]]
    assert listed[0]["last_used"] >= listed[0]["made"]
    table = told("list").splitlines()
    assert table[0].split() == ["cache", *list_verb.NUMBERS[:4], "version", "last", "used", "runs"]
    assert "\x1b" not in told("list") and "4 caches, " in table[-1]


def test_a_run_on_a_view_s_rows_is_that_of_both_formats(made, told):
    """A run has the same key whatever the format of its cache."""
    listed = json.loads(told("list", "one/qa/32", "--json"))
    keys = {
        inventory.rows_key(read_json(made.folder / cache["path"] / "cache.json"))
        for cache in listed
    }
    assert {cache["key"] for cache in listed if cache["format"] == "dataset"} == keys


def test_list_takes_names_patterns_and_paths(made, told):
    def listed(*names):
        return list(named(json.loads(told("list", "--json", *names))))

    assert listed("one/qa/48") == ["one/qa/48"]
    assert listed("*/qa/32", "one/qa/48") == listed()
    [two] = made.folder.glob("cache/two/qa/32-*")
    for name in (str(two), f"cache/two/qa/{two.name}", f"two/qa/{two.name[:6]}"):
        assert listed(name) == ["two/qa/32"]
    assert "is called 'two/qa/4'" in told("list", "two/qa/4", fails=True)
    assert "names no cache" in told("list", "/somewhere/else", fails=True)


def test_who_opens_a_cache_is_the_last_user(made, told, tmp_path):
    copy = shutil.copytree(made.folder / "cache", tmp_path / "cache")
    [folder] = copy.glob("one/qa/48-*")
    there = ("list", "one/qa/48", "--json", "--cache", str(copy))
    assert json.loads(told(*there))[0]["last_used"] is None
    open_cache(folder)
    [cache] = json.loads(told(*there))
    assert cache["last_used"] >= cache["made"]


def test_a_damaged_cache_is_listed_as_such(made, told, tmp_path):
    copy = shutil.copytree(made.folder / "cache", tmp_path / "cache")
    [folder] = copy.glob("one/qa/48-*")
    (folder / "cache.json").write_text("{")
    assert "cache.json can't be read" in told("list", "one", "--cache", str(copy))


def test_list_of_a_thousand_caches_of_many_shards(made, told, tmp_path):
    """1.4 MB each, of which only what is shown is parsed."""
    [one] = made.folder.glob("cache/two/qa/32-*")
    about = read_json(one / "cache.json")
    shard = {"bytes": 2**26, "key": "0" * 32, "tokens": "1" * 32}
    about["sources"]["train"][0]["shards"] = [shard] * 10_000
    write_json(tmp_path / "cache.json", about)
    for number in range(1000):
        folder = tmp_path / "many" / f"m{number % 10}" / "qa" / f"{number}-{number:012x}"
        folder.mkdir(parents=True)
        os.link(tmp_path / "cache.json", folder / "cache.json")
    start, cpu = time.perf_counter(), time.process_time()
    table = told("list", "--cache", str(tmp_path / "many"))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"list of 1,000 caches: {wall:.2f} s, {cpu:.2f} s of CPU")
    assert len(table.splitlines()) == 2 + 1000 + 2
    assert cpu < 4  # parsing them whole takes 15


def test_stats_say_what_sharing_saved(made, told):
    stats = json.loads(told("stats", "--json"))
    shards = list(made.folder.glob("cache/tokens/*/*/*"))
    assert stats["token_shards"]["count"] == len(shards) / 2
    assert stats["token_shards"]["bytes"] == sum(path.stat().st_size for path in shards)
    assert (stats["caches"]["count"], stats["views"], stats["runs"]["count"]) == (4, 1, 1)
    text = (made.folder / "data/a.jsonl").stat().st_size
    assert stats["sharing"] == {
        "token_shards_of_each_alone": 4 * stats["token_shards"]["count"],
        "token_shards": stats["token_shards"]["count"],
        "bytes_saved": 3 * stats["token_shards"]["bytes"],
        "source_bytes_saved": 3 * text,
    }
    assert "in the place of" in told("stats")
