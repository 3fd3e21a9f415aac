"""What a new user runs first."""

import json
import subprocess
import sys

import pytest
import yaml
from helpers.workflow import ROOT, Workflow

from tokencache.config.load import load


@pytest.fixture
def workflow(tmp_path):
    workflow = Workflow.new(tmp_path / "w", (ROOT / "config.yaml").read_text())
    command = [sys.executable, "examples/stdlib_documents.py", "data"]
    subprocess.run(command, cwd=workflow.folder, check=True, capture_output=True)
    return workflow


def test_the_demo_s_plan(workflow):
    output = workflow.run("-n")
    assert "6 caches and 6 runs: 0 of 6 combinations fresh" in output
    jobs = workflow.jobs()
    assert jobs == {"train_tokenizer": 1, "tokenize": 2, "pack": 6, "train": 6}


def test_four_models(workflow):
    files = ("--configfile", "examples/four-models.yaml")
    assert workflow.jobs(*files) == {"train_tokenizer": 1, "tokenize": 1, "pack": 8, "train": 8}
    workflow.run("qwen", *files)
    assert len(workflow.targets()) == 2
    found = [json.loads(p.read_text()) for p in workflow.folder.glob("results/qwen/*/*/run.json")]
    assert {run["max_length"] for run in found} == {128, 256}
    assert all(run["validation_loss"] < run["validation_loss_before"] for run in found)
    # The other families share what is done: their caches are packed from the same shards.
    assert workflow.jobs("deepseek", *files) == {"pack": 2, "train": 2}


def test_translation(workflow):
    files = ("--configfile=examples/translation.yaml",)
    command = [sys.executable, "examples/number_words.py", "data"]
    subprocess.run(command, cwd=workflow.folder, check=True, capture_output=True)
    assert workflow.jobs(*files) == {"train_tokenizer": 1, "tokenize": 2, "pack": 1, "train": 1}
    workflow.run(*files, "--config", "sizes={quick: {training: {max_steps: 250, eval_steps: 250}}}")
    [out] = workflow.folder.glob("results/small/numbers/*")
    run = json.loads((out / "run.json").read_text())
    assert run["sane"] and run["validation_loss"] < 0.8
    said = [json.loads(line) for line in (out / "translations.jsonl").open(encoding="utf-8")]
    # What it says may be wrong still, but is made of the right words.
    assert len(said) == 20 and all("tausend" in line["translation"] for line in said[:5])


def test_code(workflow):
    files = ("--configfile=examples/code.yaml",)
    workflow.run("caches", *files)
    [cache] = workflow.folder.glob("cache/small/code/256-*/cache.json")
    splits = json.loads(cache.read_text())["splits"]
    assert splits["train"]["rows"] > 20 * splits["validation"]["rows"]
    assert workflow.jobs(*files) == {"train": 1}


def sized(name, size):
    path = ROOT / "examples" / name
    return load(yaml.safe_load(path.read_text()) | {"size": size}, [path])


def test_four_models_at_full_size_are_the_published_ones():
    config = sized("four-models.yaml", "full")
    assert set(config.models) == {"deepseek", "llama", "mistral", "qwen"}
    assert all("@" in model.weights for model in config.models.values())


@pytest.mark.parametrize("name, size", [
    ("code.yaml", "full"), ("translation.yaml", "middle"), ("translation.yaml", "full"),
])  # fmt: skip
def test_larger_sizes_take_a_data_set_of_the_hub(name, size):
    config = sized(name, size)
    assert all("@" in dataset.hub for dataset in config.datasets.values())
    assert len(config.combinations()) == len(config.max_length)


def test_snakemake_and_snakefmt_have_nothing_to_say(workflow):
    assert "Congratulations" in workflow.run("--lint")
    tool = [sys.executable, "-m", "snakefmt", "--check", str(ROOT / "Snakefile"), ROOT / "rules"]
    done = subprocess.run(tool, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
