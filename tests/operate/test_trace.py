"""`tokencache trace`: from a checkpoint to its sources, and from a source to all made of it."""

import json
import os
import shutil

import pytest
from helpers.experiment import CONFIG, Experiment
from helpers.workflow import rows, write_rows

from tokencache.base.json_files import read_json

BUILD = [{"model": "one", "dataset": ["packed", "chat"]}]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two caches of one source, and a model trained on one of them."""
    made = Experiment.new(tmp_path_factory.mktemp("trace") / "e")
    made.configure(build=BUILD[:1])
    made.make()
    made.configure(build=[{"model": "one", "dataset": "packed"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APPTAINER_CONTAINER", str(made.folder / "images/train-0123.sif"))
        made.make(train=True)
    made.configure(build=BUILD)
    return made


@pytest.fixture
def experiment(done, tmp_path):
    return Experiment(shutil.copytree(done.folder, tmp_path / "e"))


def trace(experiment, capsys, path):
    capsys.readouterr()
    assert experiment.call("trace", "--json", str(path)) == 0
    return json.loads(capsys.readouterr().out)


def run_of(experiment):
    [run] = experiment.folder.glob("results/one/packed/64-*")
    return run.relative_to(experiment.folder)


def below(node, kind):
    return [inner for inner in node["made_of"] if inner["kind"] == kind]


def test_from_a_run_to_its_sources(experiment, capsys):
    run, cache = run_of(experiment), experiment.cache("packed")
    found = trace(experiment, capsys, run / "model.safetensors")
    assert found["kind"] == "run" and found["path"] == str(run)
    assert found["image"] == {"name": "train-0123.sif"}
    assert found["config"]["training"]["max_steps"] == 2
    assert {"torch", "transformers", "tokencache", "python"} <= found["versions"].keys()
    assert found["made_with"]["architecture"] == CONFIG["models"]["one"]["architecture"]
    [of] = below(found, "cache")
    assert of["path"] == str(cache) and of["settings"]["packing"] == "best_fit"
    assert of["config"]["shard_size"] == 4096 and of["command"] == f"snakemake {cache}"
    about = read_json(experiment.folder / cache / "cache.json")
    [tokenizer] = below(of, "tokenizer")
    assert tokenizer["path"] == f"cache/tokenizers/{about['tokenizer']['key']}"
    sources = below(of, "source")
    assert [source["path"] for source in sources] == ["data/a.jsonl", "data/b.jsonl"]
    for source, file in zip(sources, about["sources"]["train"], strict=True):
        assert [s["key"] for s in source["shards"]] == [s["key"] for s in file["shards"]]
        shards = [path for shard in source["shards"] for path in shard["token_shards"]]
        assert all((experiment.folder / path).is_file() for path in shards)
    # Wherever the run is now.
    shutil.move(experiment.folder / run, experiment.folder / "final")
    moved = trace(experiment, capsys, experiment.folder / "final")
    assert moved["path"] == "final" and below(moved, "cache") == below(found, "cache")


def test_from_a_checkpoint_of_a_run_that_goes_on(experiment, capsys):
    run = run_of(experiment)
    shutil.rmtree(experiment.folder / run)
    folder = run.parent / f".{run.name}.checkpoints/checkpoint-1"
    (experiment.folder / folder).mkdir(parents=True)
    for _ in ("by a plan", "by the config"):
        found = trace(experiment, capsys, folder)
        assert found["kind"] == "checkpoint" and found["of"] == str(run)
        assert below(found, "cache")[0]["path"] == str(experiment.cache("packed"))
        shutil.rmtree(experiment.folder / ".tokencache/plans", ignore_errors=True)
    experiment.configure(build=BUILD, training={"max_steps": 3})
    assert experiment.call("trace", str(folder)) == 1
    assert f"the present config knows {run}" in capsys.readouterr().err


def made_of(found):
    return {node["path"].split("/")[2]: node for node in found["made"]}


def test_from_a_source_to_all_that_was_made_of_it(experiment, capsys):
    found = made_of(trace(experiment, capsys, "data/b.jsonl"))
    assert found.keys() == {"packed", "chat"}
    for node in found.values():
        assert node["state"] == "made of what it holds now"
        assert node["token_shards"]["there"] == node["token_shards"]["of"] > 3
    assert [run["path"] for run in found["packed"]["made"]] == [str(run_of(experiment))]
    assert "made" not in found["chat"]
    found = made_of(trace(experiment, capsys, experiment.folder / "data/a.jsonl"))
    assert found.keys() == {"packed"}
    assert experiment.call("trace", "tokenizer/tokenizer.json") == 1
    assert "no cache in cache was made of it" in capsys.readouterr().err


def test_from_a_source_that_was_edited_moved_or_deleted(experiment, capsys):
    file = experiment.folder / "data/b.jsonl"
    before = file.read_text()
    file.write_text(before.replace("alpha", "ALPHA", 1))
    node = made_of(trace(experiment, capsys, "data/b.jsonl"))["packed"]
    assert node["state"] == "made of what it held before: 5 of 6 shards are still in it"
    [source] = [s for s in below(trace(experiment, capsys, experiment.cache("chat")), "source")]
    assert source["state"].startswith(("edited since: 5 of 6", "there; what it holds now"))
    write_rows(file, rows(70, seed=60))
    node = made_of(trace(experiment, capsys, "data/b.jsonl"))["chat"]
    assert "made of what it held before" in node["state"]
    # Under another name, it is known by what is in it.
    file.unlink()
    (experiment.folder / "c.jsonl").write_text(before)
    found = made_of(trace(experiment, capsys, "c.jsonl"))
    assert found["chat"]["state"] == "made of what it holds now"
    assert found["chat"]["source_was_called"] == ["data/b.jsonl"]
    found = trace(experiment, capsys, "data/b.jsonl")
    assert found["state"] == "gone" and made_of(found).keys() == {"packed", "chat"}
    [source] = below(trace(experiment, capsys, experiment.cache("chat")), "source")
    assert source["state"] == "gone"


def test_from_what_lies_between(experiment, capsys):
    cache = trace(experiment, capsys, experiment.cache("chat"))
    shard = below(cache, "source")[0]["shards"][1]
    [path] = shard["token_shards"]
    found = trace(experiment, capsys, path)
    assert found["kind"] == "token shard" and made_of(found).keys() == {"chat"}
    [source] = below(found, "source")
    assert source["path"] == "data/b.jsonl" and source["shards"] == [shard]
    found = trace(experiment, capsys, below(cache, "tokenizer")[0]["path"])
    assert found["kind"] == "tokenizer" and made_of(found).keys() == {"packed", "chat"}


def test_a_tree_for_people(experiment, capsys):
    assert experiment.call("trace", str(run_of(experiment))) == 0
    said = capsys.readouterr().out
    for part in (
        f"run {run_of(experiment)}\n",
        "image: train-0123.sif\n",
        "── cache cache/one/packed/64-",
        "── source data/a.jsonl (train, ",
        "shards: 7; of 7 token shards 7 are there",
        f"configuration: all of it is the `config` of {run_of(experiment)}/provenance.json",
    ):
        assert part in said, said
    assert experiment.call("trace", "data/a.jsonl") == 0
    said = capsys.readouterr().out
    assert "(made of what it holds now)" in said and f"run {run_of(experiment)}" in said
    assert os.fspath(experiment.folder) not in said
