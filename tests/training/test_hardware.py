"""What a run chooses for the hardware that it is on, and what it says of it."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.training import documents, make_run, make_split, records, refused, save, trained
from transformers import AutoConfig, AutoModelForCausalLM

from tokencache.config.schema import Training
from tokencache.errors import UserError
from tokencache.training import hardware
from tokencache.training.throughput import model_flops

pytestmark = pytest.mark.usefixtures("one_thread")


def choose(**training):
    return hardware.choose(Training(**training).model_dump())


class Gpu:
    """What torch says of a GPU that this machine need not have."""

    def __init__(self, monkeypatch, name, capability):
        said = {
            "is_available": True,
            "get_device_name": name,
            "get_device_capability": capability,
            "is_bf16_supported": capability >= (8, 0),
        }
        for function, answer in said.items():
            monkeypatch.setattr(torch.cuda, function, lambda *_, a=answer, **__: a)
        monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.parametrize(
    ("name", "capability", "training", "precision", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), {}, "bfloat16", True, 989e12),
        ("NVIDIA H100 PCIe", (9, 0), {"precision": "float32"}, "float32", False, 756e12),
        ("NVIDIA A100-SXM4-80GB", (8, 0), {"precision": "float32", "tf32": True}, "float32", True,
         312e12),
        ("NVIDIA A10G", (8, 6), {"tf32": False}, "bfloat16", False, None),
        ("Tesla V100-SXM2-16GB", (7, 0), {}, "float16", None, None),
        ("Tesla P100-PCIE-16GB", (6, 0), {}, "float32", None, None),
    ],
)  # fmt: skip
def test_by_what_the_gpu_can(name, capability, training, precision, tf32, peak, monkeypatch):
    Gpu(monkeypatch, name, capability)
    found = choose(**training)
    assert (found.device, found.precision, found.tf32, found.peak) == (name, precision, tf32, peak)
    assert found.workers == 1 and "pinned memory" in found.lines["workers"]
    made = found.arguments(compiled=False)
    assert (made["bf16"], made["fp16"]) == (precision == "bfloat16", precision == "float16")


def test_what_the_gpu_can_t_is_refused(monkeypatch):
    Gpu(monkeypatch, "Tesla V100-SXM2-16GB", (7, 0))
    with pytest.raises(UserError, match=r"training\.precision: this GPU has no bfloat16"):
        choose(precision="bfloat16")
    with pytest.raises(UserError, match=r"training\.tf32: needs a GPU with TF32"):
        choose(tf32=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_on_a_cpu(monkeypatch, tmp_path):
    found = choose(dataloader_num_workers=3)
    assert (found.precision, found.tf32, found.workers, found.peak) == ("float32", None, 3, None)
    assert found.lines["precision"].startswith("float32 (auto: there is no GPU); TF32 off")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"training.torch_compile: needs a compiler \(g\+\+ or"):
        choose(torch_compile=True)


def test_the_flops_of_a_model():
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, tie_word_embeddings=False,
    )  # fmt: skip
    # PyTorch does not count what SDPA takes on a CPU.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    weights = sum(w.numel() for w in model.parameters()) - 96 * 32  # what is only looked up
    assert model_flops(model) == {"tokens": 6 * weights, "squares": 12 * 2 * 32}
    # Against what PyTorch counts in one document's forward and backward pass, without norms.
    from torch.utils.flop_counter import FlopCounterMode

    length = 64
    ids = torch.arange(length)[None]
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    found = model_flops(model)
    ours = found["tokens"] * length + found["squares"] * length**2
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)
    model.get_input_embeddings().weight = model.get_output_embeddings().weight
    assert model_flops(model)["tokens"] == 6 * weights
    model.requires_grad_(False)
    assert model_flops(model)["tokens"] == 4 * weights


@pytest.mark.skipif(hardware.shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_model_gives_the_same(tokenizer, tmp_path):
    rows = [document for document in documents(80, 1) if len(document) == 9]
    columns = make_split(rows, packed=False)  # of one width: each is compiled for itself
    save(DatasetDict({"train": Dataset.from_dict(columns)}), tmp_path / "cache")
    losses = []
    for compiled in (True, False):
        run = make_run(tmp_path / "cache", tokenizer, max_steps=2, logging_steps=1,
                       torch_compile=compiled, per_device_train_batch_size=2)  # fmt: skip
        out = trained(run, tmp_path / str(compiled))
        losses.append([r["loss"] for r in records(out) if "loss" in r])
        model = AutoModelForCausalLM.from_pretrained(out)
        assert json.loads((out / "run.json").read_text())["parameters"] == model.num_parameters()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_setting_that_is_refused_leaves_nothing(cache, tokenizer, tmp_path):
    if not torch.cuda.is_available():
        assert "training.tf32" in refused(make_run(cache, tokenizer, tf32=True), tmp_path)


MIXTURES = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_do_not_compute_a_token_are_not_counted(family):
    from torch.utils.flop_counter import FlopCounterMode

    config = AutoConfig.for_model(
        family, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=96, **MIXTURES[family],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.set_experts_implementation("eager")  # a product for each expert, which PyTorch counts
    ids, counter = torch.arange(64)[None], FlopCounterMode(display=False)
    with counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    found = model_flops(model)
    ours = found["tokens"] * 64 + found["squares"] * 64**2
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)
