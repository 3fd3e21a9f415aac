"""LoRA: only the adapter is trained, resumed to the byte, and loads onto its weights."""

import json
import re

import pytest
import torch
from datasets import load_from_disk
from helpers.training import (
    documents,
    loss_alone,
    make_cache,
    make_run,
    records,
    refused,
    resumed_to_the_byte,
    trained,
)
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from test_distributed import assert_nearly_equal, log_of, start
from transformers import AutoModelForCausalLM

from tokencache.training import model as models

# In one worker, so that what the tests share is made once.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("lora")]

SETTINGS = {"r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def packed_cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("packed"), packed=True)


@pytest.fixture(scope="module")
def weights(cache, tokenizer, tmp_path_factory):
    """By family, a folder with a small model of random weights."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def of(family, **architecture):
        if family not in made:
            run = make_run(cache, tokenizer, architecture={"model_type": family, **architecture})
            made[family] = folder / family
            models.load(run, models.vocabulary(tokenizer)).save_pretrained(made[family])
        return made[family]

    return of


def first_loss(model):
    return loss_alone(model, documents(9, 2))


DEEPSEEK = {
    "moe_intermediate_size": 16, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1,
    "num_experts_per_tok": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
FAMILIES = {"llama": {}, "mistral": {}, "qwen2": {}, "deepseek_v3": DEEPSEEK}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_trained_on_packed_rows(
    family, packed_cache, tokenizer, weights, tmp_path, capsys
):
    base = weights(family, **FAMILIES[family])
    run = make_run(packed_cache, tokenizer, base, lora=SETTINGS, max_steps=12)
    out = trained(run, tmp_path)
    said = capsys.readouterr().err
    assert "documents are kept apart" in said and "LoRA: " in said
    assert not (out / "model.safetensors").exists() and not (out / "README.md").exists()
    tensors = load_file(out / "adapter_model.safetensors")
    assert tensors and all("lora_" in name for name in tensors)
    facts = json.loads((out / "run.json").read_text())
    count = sum(tensor.numel() for tensor in tensors.values())
    assert facts["trained_parameters"] == count < facts["parameters"] / 2
    assert facts["made_of"]["lora"]["r"] == 4 and "peft" in facts["versions"]
    found = [r["validation_loss"] for r in records(out) if "validation_loss" in r]
    assert found[-1] < found[0] - 0.02
    # As docs/use-caches.md loads it; packed, the loss is that of the documents alone.
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()
    assert first_loss(model) == pytest.approx(found[-1], rel=1e-5)
    alone = AutoPeftModelForCausalLM.from_pretrained(out)
    assert alone.peft_config["default"].base_model_name_or_path == str(base)


def test_merged_weights_are_the_adapted_ones(cache, tokenizer, weights, tmp_path):
    lora = SETTINGS | {"merge": True, "target_modules": "q_proj", "use_rslora": True}
    run = make_run(cache, tokenizer, weights("llama"), lora=lora, max_steps=5)
    out = trained(run, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(out)
    loss = records(out)[-1]["validation_loss"]
    assert first_loss(model) == pytest.approx(loss, rel=1e-5)
    base = AutoModelForCausalLM.from_pretrained(weights("llama"))
    adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
    assert first_loss(adapted) == pytest.approx(loss, rel=1e-5)
    tensors = load_file(out / "adapter/adapter_model.safetensors").values()
    facts = json.loads((out / "run.json").read_text())
    assert facts["trained_parameters"] == sum(tensor.numel() for tensor in tensors) > 0
    # What was not adapted is as it was, and can be fine-tuned on.
    before = load_file(weights("llama") / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {n.split(".")[-2] for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"q_proj"}


def test_modules_to_save_are_trained_whole(cache, tokenizer, weights, tmp_path):
    lora = SETTINGS | {"modules_to_save": "embed_tokens"}
    run = make_run(cache, tokenizer, weights("llama"), lora=lora, max_steps=4)
    out = trained(run, tmp_path)
    name = "base_model.model.model.embed_tokens.weight"
    before = load_file(weights("llama") / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(load_file(out / "adapter_model.safetensors")[name], before)
    base = AutoModelForCausalLM.from_pretrained(weights("llama"))
    loss = records(out)[-1]["validation_loss"]
    assert first_loss(PeftModel.from_pretrained(base, out).eval()) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("step", [10, 24])
def test_resumed_to_the_byte(step, cache, tokenizer, weights, tmp_path, monkeypatch):
    every = {10: 5, 24: 12}[step]
    # Dropout makes the result depend on the state of the random numbers as well.
    lora = SETTINGS | {"lora_dropout": 0.1}
    run = make_run(
        cache, tokenizer, weights("llama"), lora=lora, num_train_epochs=2, save_steps=every
    )
    saved = resumed_to_the_byte(run, step, tmp_path, monkeypatch)
    assert "adapter_model.safetensors" in saved and "model.safetensors" not in saved


def test_two_processes_are_as_good_as_one(tokenizer, weights, tmp_path):
    cache = make_cache(tmp_path / "cache", packed=True, rows=45)
    run = make_run(
        cache, tokenizer, weights("llama"), lora=SETTINGS, logging_steps=1,
        gradient_checkpointing=True, max_steps=8, per_device_train_batch_size=6,
    )  # fmt: skip
    alone = trained(run, tmp_path / "alone")
    assert len(load_from_disk(cache)["train"]) == 23  # so that a step has fewer rows than others
    assert "2 processes on 1 node" in log_of(start(run, tmp_path / "two", 2))
    assert_nearly_equal(tmp_path / "two" / "out", alone, "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_proj", "v_prj"]}, r".target_modules: unknown module 'v_prj'; did "
         "you mean 'v_proj'"),
        ({"modules_to_save": "wte"}, ".modules_to_save: unknown module 'wte'; known: .*embed_tok"),
        ({"target_modules": "self_attn"}, ": peft says: .*not supported"),
    ],
)  # fmt: skip
def test_modules_that_can_not_be_adapted(lora, message, cache, tokenizer, weights, tmp_path):
    run = make_run(cache, tokenizer, weights("llama"), lora=lora)
    said = refused(run, tmp_path)
    assert re.search(r"models\.small\.lora" + message, said), said
