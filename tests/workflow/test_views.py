"""`format: view` and large caches in parts, as a user runs them."""

import json
import shutil

import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, rows

import tokencache
from tokencache.caches.view import View, open_cache

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("workflow_views")


def config(**more):
    return {
        "models": {"m": {"tokenizer": "tokenizer", "architecture": TINY}},
        "datasets": {
            "packed": {
                "files": "a.jsonl",
                "document": {"prompt": "Q {prompt}\n", "completion": "completion"},
                "loss": "completion",
                "packing": "best_fit",
            },
        },
        "max_length": 48,
        "shard_size": 1024,
        "training": {"max_steps": 3, "per_device_train_batch_size": 2},
        **more,
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The token shards, a cache as a dataset, and a model trained on it."""
    folder = tmp_path_factory.mktemp("done") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, config(), {"a.jsonl": rows(200)})
    workflow.run()
    return workflow


@pytest.fixture
def workflow(done, tmp_path):
    return done.copy(tmp_path / "w")


def cache_of(workflow):
    return next((workflow.folder / "cache/m/packed").glob("48-*"))


def test_another_format_packs_again_and_trains_nothing(workflow):
    dataset = cache_of(workflow)
    workflow.configure(config(format="view"))
    said = workflow.run("-n")
    assert "new: format dataset → view" in said or "stale: format dataset → view" in said
    assert workflow.rerun() == {"pack": 1}
    views = {c for c in (workflow.folder / "cache/m/packed").glob("48-*")} - {dataset}
    view = open_cache(views.pop(), "train")
    assert isinstance(view, View) and view.packed
    assert workflow.jobs() == {}, "the model is that of the dataset"
    found = open_cache(dataset, "train").with_format("numpy")
    assert [r["labels"].tolist() for r in view] == [r["labels"].tolist() for r in found]
    assert "1 caches" in workflow.tokencache("summary")
    workflow.configure(config())
    assert workflow.jobs() == {}
    # All that was made goes, whatever config made it.
    workflow.run("--delete-all-output", "--config", "clean=everything")
    assert not (workflow.folder / "cache").exists() or not workflow.targets()


def test_training_on_a_view_gives_the_same_weights(workflow):
    before = workflow.files("results")
    for folder in ("results", "cache/m"):
        shutil.rmtree(workflow.folder / folder)
    workflow.configure(config(format="view"))
    assert workflow.jobs() == {"pack": 1, "train": 1}
    workflow.run()
    assert workflow.files("results") == before
    cache = cache_of(workflow)
    made = json.loads((cache / "cache.json").read_text())
    assert made["settings"]["format"] == "view"
    assert not list(cache.rglob("data-*.arrow"))
    assert workflow.jobs() == {}


def test_token_shards_that_a_view_needs_are_made_again(workflow):
    workflow.configure(config(format="view"))
    workflow.run("caches")
    view = next(c for c in cache_of(workflow).parent.glob("48-*") if (c / "view.json").exists())
    before, bytes_of_view = workflow.token_shards(), (view / "train/windows.arrow").read_bytes()
    shutil.rmtree(workflow.folder / "cache/tokens")
    shutil.rmtree(workflow.folder / "results")
    said = workflow.run("-n")
    assert "stale: its token shards are missing" in said
    jobs = workflow.jobs("caches")
    assert list(jobs) == ["tokenize"]
    run = next(line for line in said.split() if line.startswith("results/m/packed/48-"))
    for targets in ([], [run]):
        assert workflow.jobs(*targets) == jobs | {"train": 1}
    workflow.run()
    assert workflow.token_shards() == before
    assert (view / "train/windows.arrow").read_bytes() == bytes_of_view
    assert workflow.jobs() == {}


def test_a_run_refuses_a_view_without_its_token_shards(workflow):
    workflow.configure(config(format="view"))
    workflow.run("caches")
    shutil.rmtree(workflow.folder / "results")
    workflow.run("-n")
    # Gone between the plan and the job.
    plan = workflow.folder / "rules/train.smk"
    plan.write_text(
        plan.read_text().replace('"tokencache train', '"rm -r cache/tokens; tokencache train')
    )
    said = workflow.run(fails=True)
    assert "is missing, and the view" in said and "run `snakemake caches`" in said
    assert "Traceback" not in said


def test_format_of_a_data_set_is_that_of_its_files(workflow):
    wrong = config()
    wrong["datasets"]["packed"]["format"] = "view"
    workflow.configure(wrong)
    said = workflow.run("-n", fails=True)
    assert "datasets.packed.format: 'view' is not one of" in said
    assert "`format: view` stands at the top level" in said


# Parts


def test_parts_of_any_number_of_jobs_make_the_same_bytes(workflow):
    size = (workflow.folder / "a.jsonl").stat().st_size
    trees = []
    for jobs in (1, 3, 12):
        other = workflow.copy(workflow.folder / f"../{jobs}")
        shutil.rmtree(other.folder / "cache/m")
        other.in_parts(size // jobs)
        wanted = {"pack": 1} | ({"pack_part": jobs} if jobs > 1 else {})
        assert other.jobs() == wanted
        other.run()
        assert other.jobs() == {}
        trees.append(other.files("cache/m"))
    assert trees[0] == trees[1] == trees[2]
    names = {name for name in trees[0] if name.endswith(".arrow")}
    assert len(names) > 3 and not any(".parts" in name for name in trees[0])
    state = next(json.loads(data) for name, data in trees[0].items()
                 if name.endswith("train/state.json"))  # fmt: skip
    assert len(state["_data_files"]) == sum("/train/" in name for name in names)


def test_parts_that_are_there_are_not_written_again(workflow):
    size = (workflow.folder / "a.jsonl").stat().st_size
    before = workflow.copy(workflow.folder / "../one")
    before.in_parts(size)
    shutil.rmtree(before.folder / "cache/m")
    before.run("caches")
    shutil.rmtree(workflow.folder / "cache/m")
    workflow.in_parts(size // 3)
    # Stopped before the end.
    workflow.edit("rules/pack.smk", '"tokencache pack ', '"false && tokencache pack ')
    workflow.run(fails=True)
    workflow.edit("rules/pack.smk", '"false && tokencache pack ', '"tokencache pack ')
    folder = next((workflow.folder / "cache/m/packed").glob(".48-*.parts"))
    assert sorted(p.name for p in folder.iterdir()) == [f"00{n}-of-003" for n in range(3)]
    assert workflow.jobs("caches") == {"pack": 1}
    shutil.rmtree(folder / "001-of-003")
    assert workflow.jobs("caches") == {"pack_part": 1, "pack": 1}
    copy = workflow.copy(workflow.folder / "../deleted")
    copy.run("--delete-all-output")
    assert not list(copy.folder.glob("cache/m/packed/.48-*"))
    workflow.run("caches")
    assert not folder.exists()
    assert workflow.files("cache/m") == before.files("cache/m")


def test_load_opens_a_view_and_makes_its_token_shards_again(workflow):
    workflow.configure(config(format="view"))
    workflow.run("caches")

    def load(**more):
        return tokencache.load("m", "packed", 48, config=workflow.folder, **more)

    rows_of = [row["input_ids"].tolist() for row in load(split="train")]
    shutil.rmtree(workflow.folder / "cache/tokens")
    with pytest.raises(tokencache.UserError, match="is not there: make it with"):
        load()
    assert [row["input_ids"].tolist() for row in load(build=True)["train"]] == rows_of
    shard = next((workflow.folder / "cache/tokens").rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(tokencache.UserError, match=r"is damaged: it has .* verify --repair"):
        load()
