"""Packed documents get the logits and gradients that they have alone, by any attention."""

import inspect
import itertools
import json

import pytest
import torch
from helpers.training import (
    MAX_LENGTH,
    SIZE,
    TINY,
    deterministic,
    make_cache,
    make_run,
    records,
    refused,
    stop_at,
    trained,
)
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from tokencache.config.schema import Training
from tokencache.errors import UserError
from tokencache.plan.run_keys import decisive
from tokencache.training import attention, packed_attention
from tokencache.training.collate import Collator
from tokencache.training.packed_attention import PER_DOCUMENT, VARLEN

pytestmark = pytest.mark.usefixtures("one_thread")

LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "deepseek_v3": LATENT,
    "llama4_text": {"attention_chunk_size": 8, "head_dim": 16, "intermediate_size_mlp": 64,
                    "num_local_experts": 2},
}  # fmt: skip
ROWS = ((9, 1, 14, 8), (20, 6, 6), (32,))


def make_model(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TINY, "vocab_size": SIZE, **FAMILIES[family]})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def weighed(logits):
    """A sum to which each logit counts differently."""
    return (logits * torch.arange(logits.numel()).view(logits.shape[1:]).cos()).sum()


@pytest.fixture(scope="module")
def alone():
    """By family: a model, the logits of the documents of ROWS one by one, and the gradients."""
    found = {}
    for family in FAMILIES:
        model, logits = make_model(family), []
        for row, ids in zip(ROWS, tokens(), strict=True):
            each = [model(part[None], use_cache=False).logits for part in ids.split(row)]
            logits.append(torch.cat(each, 1))
            weighed(logits[-1]).backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        found[family] = model, torch.cat(logits).detach(), gradients
    return found


def tokens():
    return torch.arange(len(ROWS) * MAX_LENGTH).view(len(ROWS), -1) * 31 % SIZE


def assert_as_alone(found, name):
    model, logits, gradients = found
    model.set_attn_implementation(name)
    assert model.config._attn_implementation == name
    model.zero_grad()
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ROWS])
    packed = model(tokens(), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed, logits, rtol=1e-4, atol=1e-5)
    for row in packed:
        weighed(row[None]).backward(retain_graph=True)
    for key, weight in model.named_parameters():
        if gradients[key] is not None:
            torch.testing.assert_close(weight.grad, gradients[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sdpa", "eager", PER_DOCUMENT])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_are_as_alone(family, name, alone):
    assert_as_alone(alone[family], name)


def by_sequence(q, k, v, ends, window, scale):
    """What the flash kernel of a GPU computes, a sequence at a time."""
    found = []
    for start, end in itertools.pairwise(ends):
        at = torch.arange(end - start)
        seen = at <= at[:, None]
        if window >= 0:
            seen &= at >= at[:, None] - window
        parts = [states[start:end].transpose(0, 1) for states in (q, k, v)]
        gqa = q.shape[1] != k.shape[1]
        found.append(functional.scaled_dot_product_attention(
            *parts, attn_mask=seen, scale=scale, enable_gqa=gqa).transpose(0, 1))  # fmt: skip
    return torch.cat(found)


def varlen_of_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    assert is_causal and query.shape == key.shape
    return by_sequence(query, key, value, cu_seq_q.tolist(), -1, None)


def varlen_of_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
    window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert max_q == max_k == 32 and window_size[1] == 0 and scale is not None
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return by_sequence(query, key, value, cu_seq_q.tolist(), window_size[0], scale)


@pytest.mark.parametrize("kernel", [varlen_of_2_10, varlen_of_2_13])
@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3"])
def test_varlen_attention_is_called_as_its_version_wants(family, kernel, alone, monkeypatch):
    """The kernel itself needs a GPU: stand-ins have its signatures."""
    monkeypatch.setattr(packed_attention, "varlen_attn", kernel)
    if family == "mistral" and kernel is varlen_of_2_10:
        with pytest.raises(ValueError, match="no varlen attention with a window"):
            assert_as_alone(alone[family], VARLEN)
    else:
        assert_as_alone(alone[family], VARLEN)


def test_the_varlen_attention_that_is_here_has_a_signature_that_is_known():
    here = list(inspect.signature(packed_attention.varlen_attn).parameters)
    known = [
        set(inspect.signature(kernel).parameters) for kernel in (varlen_of_2_10, varlen_of_2_13)
    ]
    assert here[:7] == list(inspect.signature(varlen_of_2_10).parameters)[:7]
    assert any(names <= set(here) for names in known)


@pytest.fixture(scope="module")
def packed_cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("packed"), packed=True)


def test_a_packed_run_takes_the_fastest_and_says_so(packed_cache, tokenizer, tmp_path, capsys):
    training = {"max_steps": 4, "gradient_checkpointing": True}
    fast = trained(make_run(packed_cache, tokenizer, **training), tmp_path / "fast")
    said = capsys.readouterr().err
    assert f"attention {PER_DOCUMENT} (auto: " in said and "documents are kept apart" in said
    run = make_run(packed_cache, tokenizer, attn_implementation="sdpa", **training)
    masked = trained(run, tmp_path / "masked")
    assert "attention sdpa (as training.attn_implementation says)" in capsys.readouterr().err
    losses = [[record.get("loss") for record in records(out)] for out in (fast, masked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert json.loads((fast / "run.json").read_text())["attention"] == PER_DOCUMENT
    assert PER_DOCUMENT not in (fast / "config.json").read_text()


def test_resuming_with_experts_and_dropout_is_exact(packed_cache, tokenizer, tmp_path, monkeypatch):
    """The names of experts' weights in a checkpoint are those that it is loaded by."""
    architecture = {"model_type": "deepseek_v3", **LATENT, "attention_dropout": 0.1}
    run = make_run(packed_cache, tokenizer, None, architecture, max_steps=6, save_steps=3)
    whole = trained(run, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(InterruptedError):
            trained(run, tmp_path / "stopped")
    assert deterministic(trained(run, tmp_path / "stopped")) == deterministic(whole)


def test_auto_goes_back_to_the_mask_where_documents_are_mixed(packed_cache, tokenizer, monkeypatch):
    def mixed(*states, attention_mask, **more):
        return packed_attention.sdpa_attention_forward(*states, attention_mask=None, **more)

    def around(module, query, key, value, attention_mask, **more):
        return mixed(module, query, key, value, attention_mask=attention_mask, **more)

    monkeypatch.setitem(AttentionInterface._global_mapping, PER_DOCUMENT, around)
    run, collate = make_run(packed_cache, tokenizer), Collator(0, MAX_LENGTH, True)
    model = make_model("llama")
    lines = attention.choose(model, run, collate, True, "float32")
    assert (
        f"{PER_DOCUMENT} is not taken" in lines[0] and "does not keep documents apart" in lines[0]
    )
    assert lines[1].startswith("attention sdpa (auto: ") and "kept apart" in lines[2]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("varlen", "needs a GPU of NVIDIA, Ampere or newer"),
        ("flash_attention_2", "needs a GPU of NVIDIA, Ampere or newer"),
        ("flex_attention", "trains on a GPU only"),
    ],
)
def test_attention_that_is_not_to_be_had(name, message, packed_cache, tokenizer, tmp_path):
    run = make_run(packed_cache, tokenizer, attn_implementation=name)
    said = refused(run, tmp_path)
    assert f"training.attn_implementation: {name} {message}" in said and "leave it out" in said


def test_an_architecture_whose_attention_is_its_own(tokenizer):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("falcon", vocab_size=SIZE, **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    run = make_run("cache", tokenizer, attn_implementation="eager")
    with pytest.raises(UserError, match="eager can't be set for falcon, whose attention is its"):
        attention.choose(model, run, Collator(0, MAX_LENGTH, False), False, "float32")


def test_rows_that_are_not_packed_keep_the_attention_of_transformers(tokenizer):
    run = make_run("cache", tokenizer, attn_implementation=PER_DOCUMENT)
    collate = Collator(0, MAX_LENGTH, False)
    [line] = attention.choose(make_model("llama"), run, collate, False, "float32")
    assert line.startswith("attention sdpa (these rows are not packed, and")


def test_attention_is_in_no_key():
    some, other = (Training(attn_implementation=name) for name in ("auto", "eager"))
    assert decisive(some.model_dump(), True) == decisive(other.model_dump(), True)
