"""The targets that a user names, what is in them, and how they go again."""

import json
import shutil
import subprocess
from pathlib import Path

import datasets
import pytest
import transformers
from blake3 import blake3
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, rows, write_rows

from tokencache.base import lease, processes
from tokencache.base.json_files import write_json
from tokencache.base.processes import process_tag
from tokencache.plan.plan import building_path

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("workflow_targets")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Three models (one without training), two data sets, two lengths, not all combinations."""
    folder = tmp_path_factory.mktemp("done") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    make_tokenizer("byte_level", folder / "second")
    config = {
        "models": {
            "qwen2.5-7b_x": {"tokenizer": "tokenizer"},
            "trained": {"tokenizer": "tokenizer", "architecture": TINY},
            "other": {"tokenizer": "second/tokenizer.json"},
        },
        "datasets": {
            "qa": {
                "files": ["qa.jsonl"],
                "document": {"prompt": "Q {prompt}\n", "completion": "completion"},
                "loss": "completion",
                "validation": {"files": "held.jsonl"},
            },
            "packed": {
                "files": "packed.jsonl",
                "document": {"text": "prompt"},
                "packing": "best_fit",
                "overflow": "split",
            },
        },
        "max_length": [24, 48],
        "build": [
            {"model": "qwen2.5-7b_x"},
            {"model": "trained", "max_length": 24},
            {"model": "other", "dataset": "qa", "max_length": [48]},
        ],
        "training": {"max_steps": 3, "per_device_train_batch_size": 2},
    }
    # Prompts so short that something of each completion is left at 24.
    held = [row | {"prompt": "why"} for row in rows(9, 900)]
    data = {"qa.jsonl": rows(60), "held.jsonl": held, "packed.jsonl": rows(80)}
    workflow = Workflow.new(folder, config, data)
    workflow.output = workflow.run()
    return workflow


@pytest.fixture
def workflow(done, tmp_path):
    return done.copy(tmp_path / "w")


def lengths(workflow, root):
    return sorted(target.rpartition("-")[0] for target in workflow.targets(root))


def test_all_makes_just_the_combinations_of_build(done):
    assert lengths(done, "cache") == [
        "other/qa/48",
        "qwen2.5-7b_x/packed/24",
        "qwen2.5-7b_x/packed/48",
        "qwen2.5-7b_x/qa/24",
        "qwen2.5-7b_x/qa/48",
        "trained/packed/24",
        "trained/qa/24",
    ]
    assert lengths(done, "results") == ["trained/packed/24", "trained/qa/24"]


def test_the_run_ends_with_a_table(done):
    table = done.output.partition("validation loss")[2]
    rows_of_models = [line for line in table.splitlines() if line.startswith("trained")]
    assert len(rows_of_models) == 2 and "%" in rows_of_models[0]
    run = json.loads(next(done.folder.glob("results/trained/qa/*/run.json")).read_text())
    assert f"{run['validation_loss']:.3f}" in table
    assert all(line in done.tokencache("summary") for line in rows_of_models)


def test_a_model_s_target_makes_its_own_only(workflow):
    shutil.rmtree(workflow.folder / "cache")
    shutil.rmtree(workflow.folder / "results")
    workflow.run("qwen2.5-7b_x")
    assert {path.split("/")[0] for path in workflow.targets()} == {"qwen2.5-7b_x"}
    assert not workflow.targets("results")


def test_caches_trains_nothing(workflow):
    shutil.rmtree(workflow.folder / "cache")
    shutil.rmtree(workflow.folder / "results")
    workflow.run("caches")
    assert len(workflow.targets()) == 7
    assert not workflow.targets("results")


def test_a_plain_path_is_a_target(workflow):
    target = sorted(workflow.targets())[0]
    shutil.rmtree(workflow.folder / "cache")
    workflow.run(f"cache/{target}")
    assert workflow.targets() == {target}


def test_load_from_disk_gives_train_and_validation(done):
    for target in done.targets():
        cache = datasets.load_from_disk(str(done.folder / "cache" / target))
        assert set(cache) == {"train", "validation"}
        packed = {"position_ids", "seq_lengths"} if "/packed/" in target else set()
        assert set(cache["train"].column_names) == {"input_ids", "labels"} | packed
        length = int(target.rpartition("/")[2].split("-")[0])
        assert max(map(len, cache["train"]["input_ids"])) <= length
    qa = datasets.load_from_disk(str(next(done.folder.glob("cache/trained/qa/*"))))
    assert len(qa["train"]) == 60 and len(qa["validation"]) == 9


def test_the_rows_are_those_of_transformers(done):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(done.folder / "tokenizer"))
    cache = datasets.load_from_disk(str(next(done.folder.glob("cache/trained/qa/24-*"))))
    for row, made in zip(rows(60), cache["train"], strict=True):
        prompt = f"Q {row['prompt']}\n"
        encoded = tokenizer(prompt + row["completion"], truncation=True, max_length=24)
        assert made["input_ids"] == encoded["input_ids"]
        trained = [label != -100 for label in made["labels"]]
        # Characters of the completion, and the end that belongs to it.
        spans = [encoded.token_to_chars(n) for n in range(len(trained))]
        expected = [span is not None and span.end > len(prompt) for span in spans]
        expected[-1] = bool(trained[-1]) if spans[-1] is None else expected[-1]
        assert trained == expected


def test_cache_json_holds_provenance_and_checksums(done):
    for target in done.targets():
        folder = done.folder / "cache" / target
        about = json.loads((folder / "cache.json").read_text())
        assert target.endswith(about["key"][:12])
        assert about["command"] == f"snakemake cache/{target}"
        shards = [s for files in about["sources"].values() for f in files for s in f["shards"]]
        assert all((set(s) == {"key", "tokens", "bytes"}) for s in shards)
        for name, file in about["files"].items():
            data = (folder / name).read_bytes()
            assert (len(data), blake3(data).hexdigest()) == (file["bytes"], file["blake3"])
        there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert there - {".last_used"} == {*about["files"], "cache.json", ".snakemake_timestamp"}


def test_the_report_has_the_plots_of_every_run_and_the_data_of_every_cache(workflow):
    said = workflow.run("--report", "report.html")
    runs = len(list(workflow.folder.glob("results/*/*/*/run.json")))
    assert runs == said.count("Adding loss.svg") == said.count("Adding throughput.svg") > 0
    caches = len(list(workflow.folder.glob("cache/*/*/*/cache.json")))
    assert caches == said.count("Adding report.html") > 0
    assert (workflow.folder / "report.html").stat().st_size > 100_000


def test_a_run_is_a_model_that_transformers_opens(done):
    (run,) = done.folder.glob("results/trained/qa/*")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(run))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(run))
    assert model(**tokenizer("alpha", return_tensors="pt")).logits.isfinite().all()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = {"step", "loss", "perplexity", "learning_rate", "grad_norm", "tokens_per_second"}
    assert any(training <= set(line) for line in lines)
    assert any({"validation_loss", "validation_perplexity"} <= set(line) for line in lines)
    assert (run / "loss.svg").read_text().startswith("<?xml")


def test_delete_all_output_leaves_what_is_not_ours(workflow):
    config = workflow.config
    old = set(workflow.targets())
    # What another config makes: fewer models, data sets and lengths.
    workflow.configure(
        config
        | {
            "models": {"trained": config["models"]["trained"]},
            "datasets": {"packed": config["datasets"]["packed"]},
            "max_length": [32],
            "build": "all",
        }
    )
    workflow.run()
    assert old < workflow.targets()
    mine = [workflow.folder / "cache/notes.txt", workflow.folder / "results/trained/plot.png"]
    mine.append(workflow.folder / "cache/trained/qa/own/data.arrow")
    mine.append(workflow.folder / "cache/sources/raw.jsonl")
    mine.append(workflow.folder / "cache/tokenizers/mine/tokenizer.json")
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for root in ("cache", "results"):  # as who is killed while making a target leaves it
        lease.take(building_path(workflow.folder / root / "trained/packed/32-0123456789ab"), {})
    made = workflow.targets() - old
    said = workflow.run("--delete-all-output", "-n")
    assert "made by this configuration, and to be deleted: 1 cache, " in said
    assert "what other configurations made stays: " in said and "Would delete" in said
    assert old < workflow.targets()
    workflow.run("--delete-all-output")
    assert workflow.targets() == old and made
    everything = ("--delete-all-output", "--config", "clean=everything")
    assert "Would delete" in workflow.run(*everything, "-n") and workflow.targets() == old
    said = workflow.run(*everything)
    assert said.index("and to be deleted: ") < said.index("Deleting ")
    left = [p for root in ("cache", "results") for p in (workflow.folder / root).rglob("*")]
    assert sorted(path for path in left if path.is_file()) == sorted(mine)
    assert (workflow.folder / "qa.jsonl").exists()
    workflow.run("--delete-all-output")  # of nothing
    assert workflow.jobs("caches")["pack"] == 1


def test_delete_all_output_of_one_model(workflow):
    before = workflow.targets()
    workflow.run("trained", "--delete-all-output")
    assert workflow.targets() == {path for path in before if not path.startswith("trained/")}
    assert not workflow.targets("results")
    assert workflow.token_shards()


def test_delete_all_output_needs_no_sources(workflow):
    (workflow.folder / "qa.jsonl").unlink()
    said = workflow.run("--delete-all-output", fails=True)
    assert "nobody can tell what the present configuration made" in said
    assert workflow.targets() and "Traceback" not in said
    workflow.run("--delete-all-output", "--config", "clean=everything")
    assert not workflow.targets()


def test_clean_is_for_delete_all_output_alone(workflow):
    assert "clean: there is only" in workflow.run("-n", "--config", "clean=everything", fails=True)
    said = workflow.run("--delete-all-output", "--config", "clean=all", fails=True)
    assert "clean: there is only" in said and workflow.targets()


def test_delete_all_output_waits_for_a_workflow_that_runs(workflow):
    """Of whatever folder; one that was killed counts no longer."""
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        tag = process_tag().split("-")[0], sleeper.pid, processes._look(sleeper.pid)[1]
        about = {"host": "here", "pid": sleeper.pid, "folder": "/elsewhere", "since": "now",
                 "caches": [], "keys": [], "runs": []}  # fmt: skip
        write_json(workflow.folder / "cache/.workflow-{}-{}-{}.json".format(*tag), about)
        before = workflow.targets()
        said = workflow.run("--delete-all-output", fails=True)
        assert f"process {sleeper.pid} on here in /elsewhere since now" in said
        assert workflow.targets() == before and "Traceback" not in said
    finally:
        sleeper.kill()
        sleeper.wait()
    workflow.run("--delete-all-output")
    assert not workflow.targets() and not list(workflow.folder.glob("cache/.workflow-*"))


def test_models_that_share_a_tokenizer_share_token_shards(done):
    keys = {}
    for path in done.folder.glob("cache/*/qa/*/cache.json"):
        about = json.loads(path.read_text())
        shards = about["sources"]["train"][0]["shards"]
        keys.setdefault(about["model"], {shard["tokens"] for shard in shards})
    assert keys["trained"] == keys["qwen2.5-7b_x"] != keys["other"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A tokenizer trained in the workflow, chat documents, and a data set folder as a hub's."""
    folder = tmp_path_factory.mktemp("chats") / "w"
    write_rows(folder / "hub/train.jsonl", rows(90))
    write_rows(folder / "hub/test.jsonl", rows(10, 500))
    config = {
        "tokenizers": {
            "made": {
                "dataset": "chat",
                "vocab_size": 400,
                "special_tokens": ["<|im_start|>", "<|im_end|>"],
                "chat_template": "examples/chatml.jinja",
            }
        },
        "models": {"one": {"tokenizer": "made"}},
        "datasets": {
            "chat": {
                "hub": "./hub",
                "num_shards": 3,
                "validation": {"split": "test"},
                "document": {"messages": "messages"},
                "loss": "assistant",
            }
        },
        "max_length": 64,
    }
    workflow = Workflow.new(folder, config)
    workflow.output = workflow.run()
    return workflow


def test_a_hub_data_set_and_a_trained_tokenizer(chats):
    assert "compute merges" in chats.output
    (path,) = chats.folder.glob("cache/one/chat/64-*")
    cache = datasets.load_from_disk(str(path))
    assert (len(cache["train"]), len(cache["validation"])) == (90, 10)
    (folder,) = chats.folder.glob("cache/tokenizers/*")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    template = Path(chats.folder / "examples/chatml.jinja").read_text()
    for row, made in zip(rows(90), cache["train"], strict=True):
        expected = tokenizer.apply_chat_template(
            row["messages"], chat_template=template, return_dict=True, truncation=True,
            max_length=64, return_assistant_tokens_mask=True,
        )  # fmt: skip
        assert made["input_ids"] == expected["input_ids"]
        assert [label != -100 for label in made["labels"]] == list(
            map(bool, expected["assistant_masks"])
        )


def test_a_fetched_data_set_that_is_deleted_reruns_nothing(chats, tmp_path):
    workflow = chats.copy(tmp_path / "w")
    before = workflow.files("cache/one")
    shutil.rmtree(workflow.folder / "cache/sources")
    assert workflow.jobs() == {}
    shutil.rmtree(workflow.folder / "cache/tokens")
    assert workflow.rerun() == {"fetch": 2, "tokenize": 2}
    assert workflow.files("cache/one") == before


def test_a_hub_folder_that_changes_after_the_plan_is_not_fetched(chats, tmp_path):
    workflow = chats.copy(tmp_path / "w")
    shutil.rmtree(workflow.folder / "cache")
    # Made by hand, as the plan of a run that is about to start.
    plan = max((workflow.folder / ".tokencache/plans").iterdir())
    folder = next(iter(json.loads(plan.read_text())["fetches"]))
    write_rows(workflow.folder / "hub/train.jsonl", rows(91))
    output = workflow.tokencache("fetch", "--plan", str(plan), folder, fails=True)
    assert "datasets.chat: " in output and "changed while it was read" in output
    assert not (workflow.folder / folder).exists()


def test_a_changed_hub_folder_is_another_data_set(chats, tmp_path):
    workflow = chats.copy(tmp_path / "w")
    write_rows(workflow.folder / "hub/train.jsonl", rows(91))
    jobs = workflow.jobs()
    assert jobs["fetch"] == 2 and jobs["train_tokenizer"] == 1 and jobs["pack"] == 1


def test_a_model_of_a_hub(tmp_path, monkeypatch):
    """Its weights and tokenizer come from the hub's cache of this machine, where it is offline."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "hub/models--somebody--small"
    snapshot = hub / "snapshots" / commit
    make_tokenizer("bos_eos", snapshot)
    size = len(json.loads((snapshot / "tokenizer.json").read_text())["model"]["vocab"]) + 20
    config = transformers.LlamaConfig(**TINY, vocab_size=size)
    transformers.LlamaForCausalLM(config).save_pretrained(snapshot)
    (snapshot / "pytorch_model.bin").write_bytes(b"a pickle")
    blobs = hub / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):  # as a hub's cache has them
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = {"one": {"weights": f"somebody/small@{commit}", "lora": {"r": 2}}}
    config = {"models": models, "max_length": [32], "training": {"max_steps": 2}}
    config["datasets"] = {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}}
    workflow = Workflow.new(tmp_path / "w", config, {"data/a.jsonl": rows(30)})
    assert "to fetch from a hub: 1 model" in workflow.run("-n")
    assert workflow.jobs() == {
        "materialize_tokenizer": 1, "tokenize": 1, "pack": 1, "fetch": 1, "train": 1
    }  # fmt: skip
    workflow.run()
    (fetched,) = workflow.folder.glob("cache/sources/*")
    names = {file.name for file in fetched.iterdir()}
    assert "model.safetensors" in names and "pytorch_model.bin" not in names
    assert not any(file.is_symlink() for file in fetched.iterdir())
    shutil.rmtree(fetched)
    assert workflow.jobs() == {}
    (about,) = workflow.folder.glob("results/one/qa/32-*/run.json")
    assert json.loads(about.read_text())["made_of"]["weights"]["hub"] == "somebody/small"
    adapter = json.loads(about.with_name("adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "somebody/small"
    assert adapter["revision"] == commit
