"""What models are made of, through snakemake itself: weights, adapters."""

import json

import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, rows
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

MODEL = {"tokenizer": "tokenizer", "weights": "weights", "lora": {"r": 2, "lora_alpha": 4}}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A workflow that has fine-tuned small weights by LoRA."""
    folder = tmp_path_factory.mktemp("done") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    LlamaForCausalLM(LlamaConfig(vocab_size=600, **TINY)).save_pretrained(folder / "weights")
    config = {
        "models": {"one": MODEL},
        "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "completion"}}},
        "max_length": [32],
        "training": {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.01},
    }
    workflow = Workflow.new(folder, config, {"data.jsonl": rows(40)})
    workflow.run()
    return workflow


@pytest.fixture
def workflow(done, tmp_path):
    return done.copy(tmp_path / "w")


def configure(workflow, **model):
    workflow.configure(workflow.config | {"models": {"one": MODEL | model}})


def test_an_adapter_of_the_workflow_loads(workflow, monkeypatch):
    [out] = workflow.folder.glob("results/one/qa/*")
    assert json.loads((out / "run.json").read_text())["made_of"]["lora"]["target_modules"]
    monkeypatch.chdir(workflow.folder)  # which the path of the weights starts from
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    assert model.peft_config["default"].r == 2


def test_settings_of_the_adapter_make_the_training_stale(workflow):
    assert "1 cache and 1 run: all fresh" in workflow.run("-n")
    configure(workflow, lora={"r": 4, "lora_alpha": 4})
    assert workflow.jobs() == {"train": 1}
    assert "stale: lora" in workflow.run("-n")
    configure(workflow, lora=None)
    assert workflow.jobs() == {"train": 1}
    # What is peft's own default or this one's is the same.
    configure(workflow, lora={"r": 2, "lora_alpha": 4, "target_modules": ["all-linear"]})
    assert workflow.jobs() == {}


def test_weights_are_known_by_their_bytes(workflow):
    (workflow.folder / "weights").rename(workflow.folder / "moved")
    configure(workflow, weights="moved")
    assert workflow.jobs() == {}
    file = workflow.folder / "moved/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    assert workflow.jobs() == {"train": 1}
    assert "stale: weights" in workflow.run("-n")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"lora": {"rank": 2}},
            "config.yaml:6: models.one.lora.rank: here it is r, under models.NAME.lora",
        ),
        ({"lora": {"r": 0}}, "models.one.lora.r: input should be greater than or equal to 1"),
        ({"weights": None, "architecture": TINY}, "lora adapts given weights; give weights, or"),
    ],
)
def test_mistakes_in_the_configuration(model, message, workflow):
    configure(workflow, **model)
    assert message in workflow.run("-n", fails=True)
