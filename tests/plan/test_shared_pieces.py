"""Files that share pieces: copies, and dumps that each hold the last one and more."""

import json
import shutil

import pytest
from helpers.experiment import CONFIG, Experiment
from helpers.workflow import rows, write_rows

from tokencache.base.json_files import read_json
from tokencache.caches.view import open_cache
from tokencache.training import collate, nonfinite

# Of these, three files begin with the same rows, and b and c are the same.
DATASETS = {
    name: {"files": files, "document": {"text": "{prompt} {completion}"}}
    for name, files in {
        "every": ["data/c.jsonl", "data/v1.jsonl", "data/v2.jsonl", "data/b.jsonl"],
        "first": "data/v1.jsonl",
        "copy": "data/c.jsonl",
    }.items()
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A model trained on a view of all files, and a cache of each of two of them."""
    made = Experiment.new(tmp_path_factory.mktemp("shared") / "e")
    write_rows(made.folder / "data/v1.jsonl", rows(100))
    write_rows(made.folder / "data/v2.jsonl", rows(160))
    write_rows(made.folder / "data/b.jsonl", rows(40, seed=1000))
    shutil.copy(made.folder / "data/b.jsonl", made.folder / "data/c.jsonl")
    wanted = [{"model": "one", "dataset": name} for name in DATASETS]
    made.configure(datasets=DATASETS, format="view", build=wanted[:1])
    made.make(train=True)
    one = {"one": {"tokenizer": CONFIG["models"]["one"]["tokenizer"]}}
    made.configure(datasets=DATASETS, build=wanted, models=one)
    made.make()
    return made


@pytest.fixture
def experiment(done, tmp_path):
    return Experiment(shutil.copytree(done.folder, tmp_path / "e"))


def said(experiment, capsys, *words):
    capsys.readouterr()
    assert experiment.call(*words) == 0
    return json.loads(capsys.readouterr().out)


def caches(experiment, dataset="every"):
    return sorted(experiment.folder.glob(f"cache/one/{dataset}/64-*"))


def sources(cache):
    return read_json(cache / "cache.json")["sources"]["train"]


def test_each_file_is_told_with_its_own_shards_in_the_order_of_the_rows(experiment):
    for dataset, settings in DATASETS.items():
        files = settings["files"] if dataset == "every" else [settings["files"]]
        for cache in caches(experiment, dataset):
            found = sources(cache)
            assert [file["path"] for file in found] == files
            for file in found:
                size = (experiment.folder / file["path"]).stat().st_size
                assert sum(shard["bytes"] for shard in file["shards"]) == size
    c, v1, v2, b = (file["shards"] for file in sources(caches(experiment)[0]))
    assert b == c and v1[:3] == v2[:3] and len(v1) > 3


def test_what_a_finished_run_was_trained_on_stays(experiment, capsys):
    listed = said(experiment, capsys, "list", "--json")
    assert [bool(cache["runs"]) for cache in listed if cache["dataset"] == "every"] == [True, True]
    experiment.configure(build=[{"model": "one", "dataset": "plain"}])
    stays = said(experiment, capsys, "gc", "--json")["stays"]
    assert [reason for name, reason in stays.items() if "/every/" in name] == [
        "of finished runs"
    ] * 2


def test_trace_finds_all_that_was_made_of_each_file(experiment, capsys):
    [run] = experiment.folder.glob("results/one/every/64-*")
    for file in DATASETS["every"]["files"]:
        also = "first" if "v" in file else "copy"  # some of it is in that one's file
        found = said(experiment, capsys, "trace", "--json", file)
        by_dataset = {cache["path"].split("/")[2]: cache for cache in found["made"]}
        assert by_dataset.keys() == {"every", also} and len(found["made"]) == 3
        assert by_dataset["every"]["state"] == "made of what it holds now"
        runs = [cache["made"][0]["path"] for cache in found["made"] if "/every/" in cache["path"]]
        assert runs == [str(run.relative_to(experiment.folder))] * 2
    found = said(experiment, capsys, "trace", "--json", str(run.relative_to(experiment.folder)))
    [of] = [below for below in found["made_of"] if below["kind"] == "cache"]
    files = [below["path"] for below in of["made_of"] if below["kind"] == "source"]
    assert files == DATASETS["every"]["files"]


def test_rows_of_all_files_are_compared(experiment, capsys):
    for cache in said(experiment, capsys, "verify", "--deep", "1000", "--json")["compared"]:
        assert cache["rows"] == cache["same"] > 30 and not cache["not_compared"]


def test_a_changed_piece_is_told_where_it_lies_in_its_file(experiment, capsys):
    data = list(rows(160))
    data[150]["prompt"] = "another question"
    write_rows(experiment.folder / "data/v2.jsonl", data)
    [about] = said(experiment, capsys, "why", "--json", "one", "every", "64")
    [file] = about["changes"][0]["files"]
    assert file["path"] == "data/v2.jsonl" and 0 < len(file["shards"]) < file["of"]
    text = (experiment.folder / "data/v2.jsonl").read_bytes()
    for shard in file["shards"]:
        assert text[: shard["start"]].count(b"\n") + 1 == shard["first_row"]
    assert any(b"another question" in text[s["start"] : s["stop"]] for s in file["shards"])


def test_rows_of_a_view_are_told_by_the_file_that_they_are_of(experiment, monkeypatch):
    monkeypatch.chdir(experiment.folder)
    [view] = (c for c in caches(experiment) if "format" in read_json(c / "cache.json")["settings"])
    rows = open_cache(view, "train")
    split = collate.split(rows, read_json(view / "cache.json")["splits"]["train"])
    said = nonfinite.describe(split, view, list(range(len(rows))))
    assert all(file in said for file in DATASETS["every"]["files"])
    found = {}

    def named(path, before):
        files = [f["path"] for f in sources(view) for s in f["shards"] if s["tokens"] in path]
        return files[before]

    for row in range(len(rows)):
        for file, numbers in rows.places([row], named).items():
            found.setdefault(file, []).extend(numbers)
    assert found.keys() == set(DATASETS["every"]["files"])
    for file, numbers in found.items():
        lines = (experiment.folder / file).read_text().splitlines()
        assert len(set(numbers)) == len(numbers) and max(numbers) < len(lines)
