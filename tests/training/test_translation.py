"""Training on sources and targets: exact losses, the paper's schedule, resumed to the byte."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from helpers.training import (
    EOS,
    SIZE,
    make_run,
    records,
    refused,
    resumed_to_the_byte,
    save,
    trained,
)
from peft import AutoPeftModelForSeq2SeqLM
from test_distributed import assert_nearly_equal, log_of, start_each
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM

from tokencache.caches.rows import IGNORED
from tokencache.training import model as models
from tokencache.training.collate import COUNTS, NO_ROW
from tokencache.training.throughput import model_flops
from tokencache.training.translation import PairCollator

# In one worker, so that what the tests share is made once.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("translation")]

BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
FAMILIES = {
    "marian": BART | {"scale_embedding": True, "activation_function": "relu"},
    "bart": BART,
    "t5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 16},
}


def pairs(count, seed):
    """A source of random tokens, and its target: half of them, backwards. No id is only a pad."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        source = random.integers(2, SIZE, random.integers(1, 12)).tolist()
        found.append(([*source, EOS], [*source[::-2], EOS]))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    types = Features(dict.fromkeys(["input_ids", "labels"], List(Value("uint16"))))
    made = {
        name: Dataset.from_dict(
            {"input_ids": [s for s, _ in found], "labels": [t for _, t in found]}, features=types
        )
        for name, found in (("train", pairs(45, 1)), ("validation", pairs(9, 2)))
    }
    return save(DatasetDict(made), tmp_path_factory.mktemp("pairs") / "cache")


def make_pair_run(
    cache, tokenizer, weights=None, family="marian", lora=None, more=None, **training
):
    architecture = None
    if weights is None:
        architecture = FAMILIES[family] | {"model_type": family} | (more or {})
    run = make_run(cache, tokenizer, weights, None, lora, **training)
    return run | {"pairs": True, "architecture": architecture}


def losses_alone(model, found, smoothing=0.0):
    """The loss of pairs one by one, averaged over their targets, as transformers shifts them."""
    total = targets = 0
    with torch.no_grad():
        for source, target in found:
            labels = torch.tensor([target])
            started = model.prepare_decoder_input_ids_from_labels(labels)
            logits = model(torch.tensor([source]), decoder_input_ids=started).logits[0]
            total += functional.cross_entropy(
                logits, labels[0], reduction="sum", label_smoothing=smoothing
            ).item()
            targets += len(target)
    return total / targets


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_batch_is_that_of_its_pairs_alone(family, cache, tokenizer, tmp_path):
    run = make_pair_run(cache, tokenizer, family=family, max_steps=6)
    out = trained(run, tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    found = [r["validation_loss"] for r in records(out) if "validation_loss" in r]
    assert losses_alone(model, pairs(9, 2)) == pytest.approx(found[-1], rel=1e-5)
    assert found[-1] != found[0]
    last = [r for r in records(out) if "loss" in r][-1]
    sizes = sum(len(s) + len(t) for s, t in pairs(45, 1))
    assert 0 < last["targets"] < last["tokens"] < sizes and last["documents"] == 24
    assert 0 < last["useful_share"] < last["targets"] / last["tokens"]
    facts = json.loads((out / "run.json").read_text())
    assert facts["rows"] == {"train": 45, "validation": 9}
    said = [json.loads(line) for line in (out / "translations.jsonl").open()]
    assert len(said) == 9 and said[0].keys() == {"source", "target", "translation"}
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == EOS and generation["eos_token_id"] == EOS


def test_label_smoothing_is_in_the_training_loss_alone(cache, tokenizer, tmp_path, capfd):
    settings = {"label_smoothing_factor": 0.3, "per_device_train_batch_size": 45, "max_steps": 1}
    more = {"dropout": 0.0}
    run = make_pair_run(cache, tokenizer, more=more, **settings)
    model = models.load(run, models.vocabulary(tokenizer)).eval()
    before, first, after = records(trained(run, tmp_path))
    assert first["loss"] == pytest.approx(losses_alone(model, pairs(45, 1), 0.3), rel=1e-5)
    assert before["validation_loss"] == pytest.approx(losses_alone(model, pairs(9, 2)), rel=1e-5)
    assert first["perplexity"] is None and after["validation_perplexity"]
    run_json = json.loads((tmp_path / "out/run.json").read_text())
    [epoch] = run_json["by_epoch"]
    assert epoch["loss"] == first["loss"] and epoch["perplexity"] is None
    assert re.search(r"^epoch 1/1  loss [\d.]+  validation loss", capfd.readouterr().err, re.M)
    # Accumulated, tokens weigh the same whatever batch they are in.
    small = settings | {"per_device_train_batch_size": 9, "gradient_accumulation_steps": 5}
    other = trained(make_pair_run(cache, tokenizer, more=more, **small), tmp_path / "small")
    assert records(other)[1]["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert records(other)[1]["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


def test_the_schedule_is_the_paper_s(cache, tokenizer, tmp_path):
    size, warmup = BART["d_model"], 4
    run = make_pair_run(
        cache, tokenizer, lr_scheduler_type="inverse_sqrt", warmup_steps=warmup, max_steps=12,
        learning_rate=(size * warmup) ** -0.5, logging_steps=1, warmup_ratio=0.5, adam_beta2=0.98,
    )  # fmt: skip
    rates = [r["learning_rate"] for r in records(trained(run, tmp_path)) if "loss" in r]
    # It counts steps from 1; here the first one, with nothing learned, has the rate of step 0.
    paper = [0.0, *(size**-0.5 * min(n**-0.5, n * warmup**-1.5) for n in range(1, 12))]
    assert rates == pytest.approx(paper)


@pytest.mark.parametrize(
    ("size", "step"), [({}, 10), ({}, 24), ({"max_tokens": 48}, 10), ({"max_tokens": 48}, 22)]
)
def test_resumed_to_the_byte(size, step, cache, tokenizer, tmp_path, monkeypatch):
    run = make_pair_run(
        cache, tokenizer, num_train_epochs=2, save_steps=step // 2,
        label_smoothing_factor=0.1, **size,
    )  # fmt: skip
    resumed_to_the_byte(run, step, tmp_path, monkeypatch)


def test_two_processes_are_as_good_as_one(cache, tokenizer, tmp_path):
    """Each with the whole model, and each with a part of it."""
    # An epoch is 11 batches, so one rank has none in its last step.
    settings = dict(
        more={"dropout": 0.0}, logging_steps=1, max_steps=9, max_tokens=48,
        gradient_accumulation_steps=2, label_smoothing_factor=0.1,
    )  # fmt: skip
    runs = [
        (make_pair_run(cache, tokenizer, **settings, fsdp=fsdp), tmp_path / name)
        for name, fsdp in (("whole", False), ("parted", True))
    ]
    assert log_of(start_each(runs, 2)).count("2 processes on 1 node") == 2
    alone = trained(runs[0][0], tmp_path / "alone")
    for _, folder in runs:
        assert_nearly_equal(folder / "out", alone)


def test_fine_tuning_by_lora(cache, tokenizer, tmp_path):
    weights = trained(make_pair_run(cache, tokenizer, max_steps=2), tmp_path / "weights")
    run = make_pair_run(cache, tokenizer, weights=weights, lora={"r": 4}, max_steps=4)
    out = trained(run, tmp_path / "tuned")
    assert records(out)[0]["validation_loss"] == records(weights)[-1]["validation_loss"]
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(out)
    loss = records(out)[-1]["validation_loss"]
    assert losses_alone(model, pairs(9, 2)) == pytest.approx(loss, rel=1e-5)


def test_padding_is_known_by_length(cache, tokenizer):
    run = make_pair_run(cache, tokenizer)
    model = models.load(run, models.vocabulary(tokenizer))
    rows = [
        {"input_ids": np.array([5, EOS, 6, EOS]), "labels": np.array([7, EOS, EOS])},
        {"input_ids": np.array([8]), "labels": np.array([9])},
    ]
    batch = PairCollator(EOS, 32, model)(rows)
    assert batch.pop(COUNTS) == {
        "tokens": 9, "sources": 5, "targets": 4, "documents": 2, "squares": 17,
        "crossed": 9 + 1 + 12 + 1, "computed": 2 * (8 + 8),
    }  # fmt: skip
    found = {name: tensor[:, :4].tolist() for name, tensor in batch.items()}
    assert found == {
        "input_ids": [[5, EOS, 6, EOS], [8, EOS, EOS, EOS]],
        "attention_mask": [[1, 1, 1, 1], [1, 0, 0, 0]],
        "decoder_input_ids": [[EOS, 7, EOS, EOS], [EOS, EOS, EOS, EOS]],
        "labels": [[7, EOS, EOS, -100], [9, -100, -100, -100]],
    }
    assert all(tensor.shape == (2, 8) for tensor in batch.values())


def test_a_pair_that_is_not_there_counts_for_nothing(cache, tokenizer):
    model = models.load(make_pair_run(cache, tokenizer), models.vocabulary(tokenizer))
    batch = PairCollator(EOS, 32, model)([NO_ROW])
    assert batch["labels"].tolist() == [[-100] * 8] and batch["attention_mask"].sum() == 1
    counts = batch.pop(COUNTS)
    assert counts.pop("computed") == 16 and not any(counts.values())


def test_a_label_that_is_not_trained_on_is_no_id_for_the_decoder():
    """As of a target that was truncated, whose end is not its own."""
    model = SimpleNamespace(config=SimpleNamespace(decoder_start_token_id=0))
    row = {"input_ids": np.arange(3), "labels": np.array([5, 6, IGNORED, IGNORED])}
    batch = PairCollator(EOS, 32, model)([row])
    assert batch["decoder_input_ids"][0].tolist() == [0, 5, 6, EOS, EOS, EOS, EOS, EOS]
    assert batch["labels"][0].tolist() == [5, 6, *[IGNORED] * 6]
    assert batch[COUNTS]["targets"] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_flops_of_an_encoder_with_a_decoder(family, cache, tokenizer):
    name = "num_decoder_layers" if family == "t5" else "decoder_layers"
    run = make_pair_run(cache, tokenizer, family=family, more={name: 3})
    model = models.load(run, models.vocabulary(tokenizer))
    model.set_attn_implementation("eager")  # PyTorch does not count what SDPA takes on a CPU
    batch = PairCollator(EOS, 32, model)([{"input_ids": np.arange(32), "labels": np.arange(32)}])
    counts, counter = batch.pop(COUNTS), FlopCounterMode(display=False)
    with counter:
        model(**batch, use_cache=False).loss.backward()
    ours = sum(flops * counts[name] for name, flops in model_flops(model).items())
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_loss_that_is_not_a_number_is_traced_to_its_pairs(cache, tokenizer, tmp_path):
    run = make_pair_run(cache, tokenizer, learning_rate=1e30, max_grad_norm=0, warmup_ratio=0.0)
    message = refused(run, tmp_path)
    assert re.search(r"from rows (\d+, )+\d+ of train in .* \(counted from 0\)$", message)


def test_models_without_an_encoder_are_refused(cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer) | {"pairs": True}
    message = refused(run, tmp_path)
    assert re.search(
        r"architecture.model_type: llama has no encoder and decoder, .*marian", message
    )
    folder = tmp_path / "weights"
    models.load(make_run(cache, tokenizer), models.vocabulary(tokenizer)).save_pretrained(folder)
    message = refused(make_run(cache, tokenizer, folder) | {"pairs": True}, tmp_path / "other")
    assert "models.small.weights" in message and "llama has no encoder and decoder" in message
