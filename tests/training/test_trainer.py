"""Training by batches of many kinds: exact losses, and resumed to the byte."""

import json

import numpy as np
import pytest
import torch
from helpers.training import (
    MAX_LENGTH,
    TINY,
    deterministic,
    documents,
    loss_alone,
    make_cache,
    make_run,
    records,
    refused,
    resumed_to_the_byte,
    stop_at,
    trained,
)
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokencache.errors import UserError
from tokencache.plan.run_keys import decisive
from tokencache.training import attention, router
from tokencache.training import model as models
from tokencache.training.collate import COUNTS, Collator
from tokencache.training.model import Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "size",
    [
        {"per_device_train_batch_size": 48},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 48},
        {"max_tokens": 64, "gradient_accumulation_steps": 48},
        {"max_tokens": 64, "gradient_accumulation_steps": 48, "group_by_length": False},
    ],
)
def test_a_step_s_loss_is_the_mean_over_all_targets(size, cache, tokenizer, tmp_path):
    """The real ends of text among them, though the tokenizer pads with the same token."""
    run = make_run(cache, tokenizer, max_steps=1, **size)
    model = models.load(run, models.vocabulary(tokenizer))
    [loss] = [r["loss"] for r in records(trained(run, tmp_path)) if "loss" in r]
    assert loss == pytest.approx(loss_alone(model, documents(48, 1)), rel=1e-5)


def by_accumulation(cache, tokenizer, folder, architecture, **training):
    """The losses of steps whose rows come as one batch and as several."""
    losses = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        run = make_run(
            cache, tokenizer, architecture=architecture, per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation, max_steps=4, logging_steps=1, **training,
        )  # fmt: skip
        out = trained(run, folder / str(batch))
        losses.append([r["loss"] for r in records(out) if "loss" in r])
    return losses


# The last one's own loss is of labels that are not shifted, and a mean over a batch.
BART = {"model_type": "bart", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64, "dropout": 0.0}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_accumulated_batches_weigh_tokens(family, cache, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.training.TINY", TINY if family == "llama" else {})
    architecture = BART if family == "bart" else {}
    losses = by_accumulation(cache, tokenizer, tmp_path, architecture)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_a_decoder_s_loss_is_that_of_the_next_token(cache, tokenizer, tmp_path, monkeypatch):
    """Which the validation tells too; its own would be that of the token that it is given."""
    monkeypatch.setattr("helpers.training.TINY", {})
    run = make_run(cache, tokenizer, architecture=BART, max_steps=40, logging_steps=40)
    out = trained(run, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    total = targets = 0
    for document in documents(9, 2):
        ids = torch.tensor([document])
        with torch.no_grad():
            losses = functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
        total, targets = total + losses.item() * (len(document) - 1), targets + len(document) - 1
    assert records(out)[-1]["validation_loss"] == pytest.approx(total / targets, rel=1e-5)
    assert total / targets < 3.5  # of 4.6 at first


EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
           "output_router_logits": True, "router_aux_loss_coef": 0.5}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_a_router_loss_is_of_all_tokens_of_a_step(packed, tokenizer, tmp_path):
    cache = make_cache(tmp_path / "cache", packed=packed)
    losses = by_accumulation(cache, tokenizer, tmp_path, EXPERTS, learning_rate=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_a_router_loss_goes_on_with_the_same_random_numbers(
    cache, tokenizer, tmp_path, monkeypatch
):
    """Those of dropout, where a run stops in the middle of an epoch."""
    run = make_run(
        cache, tokenizer, architecture=EXPERTS | {"attention_dropout": 0.3},
        gradient_accumulation_steps=2, max_steps=3, save_steps=2, logging_steps=1,
    )  # fmt: skip
    resumed_to_the_byte(run, 2, tmp_path, monkeypatch)


def test_the_router_loss_is_the_model_s_own(cache, tokenizer, tmp_path):
    """Where a step is one batch, and without its padding."""
    run = make_run(cache, tokenizer, architecture=EXPERTS, max_steps=1,
                   per_device_train_batch_size=48)  # fmt: skip
    model = models.load(run, models.vocabulary(tokenizer))
    rows = [{"input_ids": np.array(d), "labels": np.array(d)} for d in documents(48, 1)]
    batch = Collator(0, MAX_LENGTH, False)(rows)
    del batch[COUNTS]
    first = records(trained(run, tmp_path))[1]
    assert first["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert first["perplexity"] is None


def half_alone(module, query, *more, **named):
    """An attention as flash-attn's, for which transformers casts as autocast says."""
    if query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *more, **named)


def test_a_router_loss_with_an_attention_for_half_precision_alone(
    cache, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "half_alone", half_alone)
    monkeypatch.setattr(attention, "IN_HALF", ("half_alone",))
    monkeypatch.setattr(
        attention, "choose", lambda model, *_: [model.set_attn_implementation("half_alone")]
    )
    run = make_run(cache, tokenizer, architecture=EXPERTS, precision="bfloat16", max_steps=1)
    assert json.loads((trained(run, tmp_path) / "run.json").read_text())["steps"] == 1


def test_a_router_loss_of_another_kind_is_refused(cache, tokenizer, tmp_path, monkeypatch):
    run = make_run(cache, tokenizer, architecture=EXPERTS, max_steps=1)
    model = models.load(run, models.vocabulary(tokenizer))
    found = router.find(model, run)
    assert (found.coefficient, found.top_k) == (0.5, 2)
    with pytest.raises(UserError, match="output_router_logits: false"):
        router.find(model, run | {"pairs": True})
    with monkeypatch.context() as patch, pytest.raises(UserError, match="can't be checked"):
        patch.setattr(model, "forward", lambda **_: torch.zeros(1) @ torch.zeros(2))
        router.find(model, run)
    # A loss with something more in it.
    monkeypatch.setattr(router, "COEFFICIENTS", ("num_experts",))
    message = refused(run, tmp_path)
    assert "mixtral adds a router loss of its own kind" in message
    without = EXPERTS | {"output_router_logits": False}
    model = models.load(make_run(cache, tokenizer, architecture=without), Vocabulary(96, 1, 1, 1))
    assert router.find(model, run) is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 64, "gradient_accumulation_steps": 2},
        {"max_tokens": 64, "dataloader_num_workers": 2},
        {"group_by_length": True},
    ],
)
def test_resumed_with_batches_by_tokens_or_length(
    settings, packed, tokenizer, tmp_path, monkeypatch
):
    cache = make_cache(tmp_path / "cache", packed=packed, rows=90)
    architecture = {"attention_dropout": 0.1}
    run = make_run(cache, tokenizer, None, architecture, num_train_epochs=3, **settings)
    undisturbed = trained(run, tmp_path / "undisturbed")
    about = json.loads((undisturbed / "run.json").read_text())
    assert about["seen"]["tokens"] == 3 * sum(map(len, documents(90, 1)))
    in_epoch = about["steps"] // 3
    # In the middle of the second epoch, and at its end.
    for step in (in_epoch + in_epoch // 2, 2 * in_epoch):
        every = run | {"training": run["training"] | {"save_steps": step}}
        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            stop_at(patch, step)
            trained(every, tmp_path / str(step))
        out = trained(every, tmp_path / str(step))
        assert json.loads((out / "timing.json").read_text())["resumed_from_step"] == step
        weights = "model.safetensors"
        assert (out / weights).read_bytes() == (undisturbed / weights).read_bytes()


def test_what_is_in_no_key_changes_no_weights(cache, tokenizer, tmp_path):
    def result(name, **settings):
        run = make_run(cache, tokenizer, None, {"attention_dropout": 0.1}, max_steps=5, **settings)
        weights = trained(run, tmp_path / name) / "model.safetensors"
        return decisive(run["training"], False), weights.read_bytes()

    often = {
        "eval_steps": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "save_minutes": 1e-9,
        "save_total_limit": 1,
        "eval_on_start": False,
        "per_device_eval_batch_size": 3,
    }
    without_effect = {"num_train_epochs": 7, "warmup_steps": 2, "warmup_ratio": 0.9}
    other = result("other", gradient_checkpointing=True, **often, **without_effect)
    assert result("one", warmup_steps=2) == other


def test_workers_change_nothing_and_a_budget_keeps_the_loss(cache, tokenizer, tmp_path):
    def result(name, **settings):
        run = make_run(cache, tokenizer, None, {"attention_dropout": 0.1}, max_steps=5, **settings)
        return deterministic(trained(run, tmp_path / name))[1]["model.safetensors"]

    assert result("one") == result("other", dataloader_num_workers=2)
    # All rows in one batch: then neither their order nor their padding matters.
    losses = []
    for name, size in {"tokens": {"max_tokens": 4096}, "rows": {"max_tokens": None}}.items():
        size |= {} if name == "tokens" else {"per_device_train_batch_size": 48}
        run = make_run(cache, tokenizer, max_steps=4, logging_steps=1)
        run["training"] |= size
        losses.append([r["loss"] for r in records(trained(run, tmp_path / name)) if "loss" in r])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
