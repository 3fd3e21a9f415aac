"""Training by batches of many kinds: exact losses, and resumed to the byte."""

import json

import pytest
from training import (
    deterministic,
    documents,
    loss_alone,
    make_cache,
    make_run,
    records,
    stop_at,
    trained,
)
from transformers import LlamaForCausalLM

from tokencache import models

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


@pytest.mark.parametrize("own_loss", [False, True])
def test_accumulated_batches_weigh_tokens(own_loss, cache, tokenizer, tmp_path, monkeypatch):
    if own_loss:  # as for a model whose loss is a mean over the batch
        monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    losses = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        run = make_run(
            cache, tokenizer, per_device_train_batch_size=batch, max_steps=4, logging_steps=1,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        out = trained(run, tmp_path / str(batch))
        losses.append([r["loss"] for r in records(out) if "loss" in r])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


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
