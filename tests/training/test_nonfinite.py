"""A loss or a gradient that is not finite is traced to the rows and documents it came from."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.shards import entry, tokens, write_shard
from helpers.training import SIZE, documents, make_run, make_split, refused, save

from tokencache.caches import dataset
from tokencache.training import model as models

pytestmark = pytest.mark.usefixtures("one_thread")

BAD = SIZE - 1  # a token whose embedding is not a number


@pytest.fixture(scope="module")
def weights(cache, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "weights"
    model = models.load(make_run(cache, tokenizer), models.vocabulary(tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = float("nan")
    model.save_pretrained(folder)
    return folder


def with_bad(count, *places):
    """Documents of which those at some places hold the bad token."""
    found = [[t if t != BAD else 2 for t in document] for document in documents(count, 1)]
    for place in places:
        found[place] = [5, BAD, 6, 1]
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("norm", [1.0, 0.0])
def test_its_rows_are_named(packed, norm, weights, tokenizer, tmp_path):
    # The first two rows have nothing to predict, and are left out.
    found = [[7], [8], *with_bad(40, 30)]
    columns = make_split(found, packed)
    save(DatasetDict({"train": Dataset.from_dict(columns)}), tmp_path / "cache")
    run = make_run(tmp_path / "cache", tokenizer, weights=weights, per_device_train_batch_size=1,
                   max_grad_norm=norm, logging_steps=200, save_steps=200)  # fmt: skip
    message = refused(run, tmp_path)
    row = 16 if packed else 32
    step = message.partition("that is not finite came at step ")[2].partition(",")[0]
    assert f"The first loss that is not finite came at step {step}, from row {row} of train" in (
        message
    )
    assert message.endswith(f"{tmp_path / 'cache'} (counted from 0)") and int(step) >= 1


def test_a_view_names_the_documents_of_the_source(weights, tokenizer, tmp_path):
    made = [([*document[:-1], 1], [True] * len(document)) for document in with_bad(60, 41)]
    paths = [
        write_shard(tmp_path / "tokens" / f"{name}.arrow", made[at : at + 20])
        for name, at in (("aa", 0), ("bb", 20), ("cc", 40))
    ]
    shards = [{"key": n, "tokens": n, "bytes": 1} for n in ("bb", "cc")]
    sources = [{"path": "one.jsonl", "shards": [{"key": "aa", "tokens": "aa", "bytes": 1}]},
               {"path": "two.jsonl", "shards": shards}]  # fmt: skip
    of = tokens({"train": paths}, provenance={"sources": {"train": sources}})
    wanted = entry(32, packing="best_fit", key="c" * 32) | {"format": "view"}
    dataset.build(wanted, of, tmp_path / "cache")
    run = make_run(tmp_path / "cache", tokenizer, weights=weights, per_device_train_batch_size=1)
    message = refused(run, tmp_path)
    assert " of train in " in message
    named = message.partition("made of ")[2]
    assert " of two.jsonl" in named and "21" in named.split(" of two.jsonl")[0]


def test_a_gradient_that_is_not_finite(cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer, learning_rate=1e30, warmup_ratio=0, max_grad_norm=0,
                   logging_steps=3)  # fmt: skip
    message = refused(run, tmp_path)
    assert "The first loss that is not finite came at step 2, from rows" in message
    assert json.loads((tmp_path / ".out.checkpoints/metrics.jsonl").read_text().split("\n")[0])
