"""Models that fit their cache, and clear refusals of those that do not."""

import os

import pytest
import torch
from helpers.training import (
    EOS,
    MAX_LENGTH,
    SIZE,
    documents,
    loss_alone,
    make_cache,
    make_run,
    records,
    refused,
    trained,
)
from transformers import AutoModelForCausalLM

from tokencache.errors import UserError
from tokencache.training import attention, causality
from tokencache.training import model as models
from tokencache.training.collate import Collator
from tokencache.training.translation import PairCollator

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def packed_cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("packed"), packed=True)


FAMILIES = {"llama": {}, "qwen2": {}, "mistral": {"sliding_window": 8}}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_keep_documents_apart(family, packed_cache, tokenizer, tmp_path, capsys):
    architecture = {"model_type": family, **FAMILIES[family]}
    run = make_run(packed_cache, tokenizer, architecture=architecture, max_steps=3)
    out = trained(run, tmp_path)
    assert "documents are kept apart" in capsys.readouterr().err
    # The packed validation loss is that of the documents on their own.
    model = AutoModelForCausalLM.from_pretrained(out)
    alone = loss_alone(model, documents(9, 2))
    assert alone == pytest.approx(records(out)[-1]["validation_loss"], rel=1e-5)


def test_a_model_that_mixes_packed_documents_is_refused(
    packed_cache, tokenizer, tmp_path, monkeypatch
):
    load = models.load

    def deaf(*args):
        model = load(*args)
        forward = model.forward
        model.forward = lambda position_ids=None, **more: forward(**more)
        return model

    monkeypatch.setattr(models, "load", deaf)
    message = refused(make_run(packed_cache, tokenizer), tmp_path)
    assert "does not keep documents apart" in message and "packing: none" in message


def test_the_check_of_packing_sees_the_mask_that_spoils_it(packed_cache, tokenizer):
    class WithMask(Collator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    run = make_run(packed_cache, tokenizer)
    vocab = models.vocabulary(tokenizer)
    model = models.load(run, vocab)
    assert attention.check_packing(model, run, Collator(vocab.pad, MAX_LENGTH, True)) < 1e-4
    with pytest.raises(UserError, match="packing: none"):
        attention.check_packing(model, run, WithMask(vocab.pad, MAX_LENGTH, True))


BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64}  # fmt: skip


def test_a_model_that_sees_the_future_is_refused(cache, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.training.TINY", {})
    message = refused(make_run(cache, tokenizer, architecture=BERT), tmp_path)
    assert "models.small on datasets.texts: this model (bert) sees the tokens that" in message
    assert "set is_decoder: true in its architecture" in message
    decoder = BERT | {"is_decoder": True}
    trained(make_run(cache, tokenizer, architecture=decoder, max_steps=1), tmp_path / "decoder")


@pytest.mark.parametrize("pairs", [False, True])
def test_the_check_of_causality(pairs, tokenizer, monkeypatch):
    """A glimpse of the mean of all logits is enough, in the decoder of pairs too."""
    monkeypatch.setattr("helpers.training.TINY", {})
    sizes = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 2}
    architecture = {"model_type": "bart", **sizes}
    run = make_run("cache", tokenizer, architecture=architecture) | {"pairs": pairs}
    vocab = models.vocabulary(tokenizer)
    model = models.load(run, vocab)
    collate = Collator(vocab.pad, MAX_LENGTH, False)
    if pairs:
        collate = PairCollator(vocab.pad, MAX_LENGTH, model)
    model.config.use_cache = False  # as the trainer has it
    causality.check(model, run, collate)
    forward = model.forward

    def peeping(**given):
        found = forward(**given)
        found.logits = found.logits + 0.1 * found.logits.mean(1, keepdim=True)
        return found

    model.forward = peeping
    with pytest.raises(UserError, match=r"this model \(bart\) sees the tokens") as caught:
        causality.check(model, run, collate)
    assert ("the decoder of this model" in str(caught.value)) == pairs
    for length in (2, 3):
        with pytest.raises(UserError, match="sees the tokens"):
            causality.check(model, run | {"max_length": length}, collate)
    causality.check(model, run | {"max_length": 1}, collate)  # there is nothing to see


def test_weights_that_do_not_fit(cache, tokenizer, tmp_path):
    weights = tmp_path / "weights"
    run = make_run(cache, tokenizer)
    models.load(run, models.vocabulary(tokenizer)).save_pretrained(weights)
    run = make_run(cache, tokenizer, weights=weights) | {"max_length": 4096}
    assert "more than the 2048 positions" in refused(run, tmp_path / "long")

    run = make_run(cache, tokenizer, weights=weights)
    (weights / "config.json").write_text((weights / "config.json").read_text() + " ")
    assert "weights changed while it was read" in refused(run, tmp_path / "changed")

    small = tmp_path / "small"
    vocab = models.Vocabulary(50, None, EOS, EOS)
    models.load(make_run(cache, tokenizer), vocab).save_pretrained(small)
    message = refused(make_run(cache, tokenizer, weights=small), tmp_path / "vocabulary")
    assert f"50 embeddings, fewer than the tokenizer's {SIZE} tokens" in message

    run = make_run(cache, tokenizer, weights=small)
    os.rename(small / "model.safetensors", small / "pytorch_model.bin")
    message = refused(run, tmp_path / "pickle")
    assert "pickle (pytorch_model.bin), which can run any code" in message

    run = make_run(cache, tokenizer, weights=tmp_path / "nowhere")
    assert "models.small.weights" in refused(run, tmp_path / "missing")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "lama"}, r"\.model_type: transformers knows no 'lama'; did you mean"),
        ({"hidden_sizee": 3}, r"\.hidden_sizee: llama has no such key; did you mean 'hidden_size'"),
        ({"hidden_size": "x"}, ": .*hidden_size"),
        ({"num_attention_heads": 5}, ": .*number of attention heads"),
        ({"vocab_size": 50}, rf"\.vocab_size: 50 is too small, the tokenizer has {SIZE} tokens"),
        ({"max_position_embeddings": 16}, r"\.max_position_embeddings: 16 is less than max_length"),
    ],
)
def test_architectures_that_cannot_be(architecture, message, cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer, architecture=architecture)
    with pytest.raises(UserError, match=r"models\.small\.architecture" + message):
        trained(run, tmp_path)


def test_positions_grow_with_max_length(cache, tokenizer):
    run = make_run(cache, tokenizer) | {"max_length": 4096}
    vocab = models.vocabulary(tokenizer)
    assert models.load(run, vocab).config.max_position_embeddings == 4096
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = models.load(run | {"architecture": gpt2}, vocab)
    assert model.transformer.wpe.weight.shape == (4096, 32)
