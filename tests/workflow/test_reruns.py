"""What reruns after which change, through snakemake itself."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_tokenizer
from datasets import load_from_disk
from helpers.workflow import TINY, Workflow, rows, write_rows

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("workflow_reruns")

ROWS = 1200


def base_config(tokenizer):
    return {
        "shard_size": 8192,
        "models": {"one": {"tokenizer": tokenizer, "architecture": TINY}},
        "datasets": {
            "qa": {
                "files": "data",
                "document": {"text": "{prompt} {completion}"},
                "validation": {"fraction": 0.1, "seed": 1},
            },
            "other": {"files": "more.jsonl", "document": {"text": "prompt"}},
        },
        "max_length": [32],
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A workflow that has run once: 2 caches, 2 runs, some dozens of token shards."""
    folder = tmp_path_factory.mktemp("done")
    make_tokenizer("bos_eos", folder / "w" / "tokenizer")
    data = {"data/a.jsonl": rows(ROWS), "data/b.jsonl": rows(50, 5000), "more.jsonl": rows(40)}
    workflow = Workflow.new(folder / "w", base_config("tokenizer"), data)
    workflow.run()
    assert len(workflow.token_shards()) > 10
    assert workflow.targets() and workflow.targets("results")
    return workflow


@pytest.fixture
def workflow(done, tmp_path):
    return done.copy(tmp_path / "w")


def changed(workflow, **keys):
    workflow.configure(workflow.config | keys)


def all_files(workflow):
    """Every file under cache and results with its time of writing."""
    found = [p for root in ("cache", "results") for p in (workflow.folder / root).rglob("*")]
    return {p: p.stat().st_mtime_ns for p in found if p.is_file()}


def test_nothing_changed(workflow):
    before = all_files(workflow)
    output = workflow.run()
    assert "all fresh" in output and "Nothing to be done" in output
    assert all_files(workflow) == before


def test_a_touched_source_reruns_nothing(workflow):
    later = time.time() + 60
    for path in (workflow.folder / "data").iterdir():
        os.utime(path, (later, later))
    assert workflow.jobs() == {}


def test_a_renamed_source_reruns_nothing(workflow):
    data = workflow.folder / "data"
    (data / "a.jsonl").rename(data / "zz.jsonl")
    assert workflow.jobs() == {}


def test_a_moved_source_reruns_nothing(workflow):
    (workflow.folder / "data").rename(workflow.folder / "elsewhere")
    datasets = workflow.config["datasets"]
    datasets["qa"]["files"] = "elsewhere/*.jsonl"
    changed(workflow, datasets=datasets)
    assert workflow.jobs() == {}


def test_keys_in_another_order_rerun_nothing(workflow):
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return value

    workflow.configure(turned(workflow.config))
    assert workflow.jobs() == {}


def test_settings_of_speed_and_software_deployment_rerun_nothing(workflow):
    training = workflow.config["training"] | {
        "logging_steps": 1, "save_steps": 7, "dataloader_num_workers": 1, "torch_compile": True,
        "mlflow": {"experiment": "x"}, "group_by_length": False, "save_minutes": 5,
    }  # fmt: skip
    changed(workflow, training=training)
    assert workflow.jobs() == {}
    assert workflow.jobs("--software-deployment-method", "conda") == {}


def edit_row(path, number):
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[number])
    row["completion"] += "!"
    lines[number] = json.dumps(row, ensure_ascii=False) + "\n"
    path.write_text("".join(lines))


def test_a_changed_row_makes_one_token_shard(workflow):
    before, caches = workflow.token_shards(), workflow.targets()
    edit_row(workflow.folder / "data/a.jsonl", 3)
    output = workflow.run("-n")
    assert "stale: data: a.jsonl (1 of " in output
    assert workflow.rerun() == {"tokenize": 1, "pack": 1, "train": 1}
    assert len(workflow.token_shards() - before) == 1
    (new,) = workflow.targets() - caches
    assert new.startswith("one/qa/32-")


def test_a_change_and_back_reruns_nothing(workflow):
    path = workflow.folder / "data/a.jsonl"
    original = path.read_text()
    edit_row(path, 3)
    assert workflow.jobs("caches") == {"tokenize": 1, "pack": 1}
    path.write_text(original)
    assert workflow.jobs() == {}


def test_appended_rows_make_the_last_shard_and_new_ones(workflow):
    before, caches = workflow.token_shards(), set(workflow.folder.glob("cache/one/qa/*"))
    path = workflow.folder / "data/a.jsonl"
    old = [shard["stop"] for shard in shards_of(workflow, path)]
    with open(path, "a", encoding="utf-8") as stream:
        for row in rows(400, 9000):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    jobs = workflow.rerun()
    assert jobs["pack"] == jobs["train"] == 1
    new = [s["stop"] for s in shards_of(workflow, path)]
    assert new[: len(old) - 1] == old[:-1]  # all but the last one are as they were
    assert len(workflow.token_shards() - before) == len(new) - len(old) + 1
    # No document of the validation is trained on now, nor the other way round.
    [one], [other] = caches, set(workflow.folder.glob("cache/one/qa/*")) - caches
    kept, grown = documents_of(one), documents_of(other)
    assert kept["train"] < grown["train"] and kept["validation"] < grown["validation"]
    assert not grown["train"] & grown["validation"]


def documents_of(cache):
    """The different rows of each split."""
    return {
        name: set(map(tuple, rows["input_ids"])) for name, rows in load_from_disk(cache).items()
    }


def shards_of(workflow, path):
    """The shards of a file in the newest plan."""
    newest = max((workflow.folder / ".tokencache/plans").iterdir())
    shards = json.loads(newest.read_text())["shards"].values()
    mine = [s for s in shards if workflow.folder / s["path"] == path]
    return sorted(mine, key=lambda s: s["start"])


def test_a_new_max_length_tokenizes_nothing(workflow):
    changed(workflow, max_length=[32, 48])
    assert "max_length 32 → 48" in workflow.run("-n")
    assert workflow.rerun() == {"pack": 2, "train": 2}


def test_a_second_model_with_the_same_tokenizer_tokenizes_nothing(workflow):
    shutil.copytree(workflow.folder / "tokenizer", workflow.folder / "same")
    models = workflow.config["models"] | {"two": {"tokenizer": "same", "architecture": TINY}}
    changed(workflow, models=models)
    before = workflow.token_shards()
    assert workflow.rerun() == {"pack": 2, "train": 2}
    assert workflow.token_shards() == before


def test_a_training_setting_trains_only(workflow):
    changed(workflow, training=workflow.config["training"] | {"learning_rate": 0.01})
    assert "learning_rate 5e-05 → 0.01" in workflow.run("-n")
    assert workflow.jobs() == {"train": 2}
    before = workflow.targets("results")
    workflow.run()
    assert workflow.jobs() == {}
    new = workflow.targets("results") - before
    assert {run.rpartition("-")[0] for run in new} == {"one/qa/32", "one/other/32"}


def test_a_model_s_own_training_setting_trains_that_model_only(workflow):
    models = workflow.config["models"]
    models["two"] = models["one"] | {"training": {"learning_rate": 0.01}}
    changed(workflow, models=models)
    assert workflow.jobs() == {"pack": 2, "train": 2}
    assert workflow.jobs("one") == {}
    models["two"]["training"]["learning_rate"] = 5e-05  # what the other one has
    changed(workflow, models=models)
    plan = workflow.run("-n", "two")
    assert "results/two" in plan and "results/one" not in plan


def test_an_added_data_set_makes_its_own_targets_only(workflow):
    write_rows(workflow.folder / "third.jsonl", rows(30, 700))
    datasets = workflow.config["datasets"]
    datasets["third"] = {"files": "third.jsonl", "document": {"text": "prompt"}}
    changed(workflow, datasets=datasets)
    assert workflow.rerun() == {"tokenize": 1, "pack": 1, "train": 1}


@pytest.mark.parametrize(
    ("what", "jobs"),
    [
        ("cache/tokens/*/*/*.arrow", {"tokenize": 1}),
        ("cache/one/qa/*", {"pack": 1}),
        ("results/one/qa/*", {"train": 1}),
    ],
)
def test_a_deleted_output_is_made_again_alone(workflow, what, jobs):
    before = workflow.results()
    victim = next(workflow.folder.glob(what))
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    assert workflow.jobs() == jobs
    workflow.run()
    assert workflow.jobs() == {}
    assert workflow.results() == before


def test_a_deleted_tokenizer_comes_back_for_what_needs_it(workflow):
    before = workflow.results()
    shutil.rmtree(workflow.folder / "cache/tokenizers")
    assert workflow.jobs() == {}
    shutil.rmtree(workflow.folder / "cache/one/qa")
    assert workflow.rerun() == {"materialize_tokenizer": 1, "pack": 1}
    assert workflow.results() == before


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        ({"overflow": "drop"}, "overflow truncate → drop"),
        ({"packing": "best_fit"}, "packing none → best_fit"),
        ({"validation": {"fraction": 0.2, "seed": 1}}, "validation"),
        ({"document": {"text": "{completion}"}}, "recipe: text"),
    ],
)
def test_the_dry_run_says_which_setting_changed(workflow, dataset, why):
    datasets = workflow.config["datasets"]
    datasets["qa"] |= dataset
    changed(workflow, datasets=datasets)
    output = workflow.run("-n")
    line = next(line for line in output.splitlines() if line.startswith("one") and " qa " in line)
    assert f"stale: {why}" in line
    tokenizes = "document" in dataset
    assert ("tokenize" in workflow.jobs()) == tokenizes
    assert (" MB" in line) == tokenizes


def test_the_dry_run_says_what_of_the_tokenizer_changed(workflow):
    path = workflow.folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "!"}))
    output = workflow.run("-n")
    assert "stale: tokenizer: special tokens" in output


def test_a_dry_run_writes_no_plan_and_no_target(workflow):
    changed(workflow, max_length=[64])
    plans = list((workflow.folder / ".tokencache/plans").iterdir())
    before = all_files(workflow)
    workflow.run("-n")
    assert list((workflow.folder / ".tokencache/plans").iterdir()) == plans
    assert all_files(workflow) == before


def test_two_places_make_the_same_bytes(done, tmp_path):
    other = Workflow.new(tmp_path / "other", done.config)
    for name in ("data", "more.jsonl", "tokenizer"):
        source = done.folder / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, other.folder / name)
    other.run("caches")
    assert other.files("cache") == done.files("cache")


def test_config_on_the_command_line_overrides(workflow):
    assert workflow.jobs("--config", "max_length=[40]") == {"pack": 2, "train": 2}
    assert workflow.jobs("caches", "--config", "max_length=[40]") == {"pack": 2}


def test_another_config_file_takes_the_place_of_the_default(workflow):
    config = workflow.config | {"max_length": [24]}
    (workflow.folder / "mine.yaml").write_text(yaml.safe_dump(config))
    assert workflow.jobs("caches", "--configfile", "mine.yaml") == {"pack": 2}
    assert Path(workflow.folder / "config.yaml").exists()
