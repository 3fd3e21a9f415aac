"""`transformers.Trainer` and TRL's `SFTTrainer` take a cache as it is, labels and documents too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.shards import build, entry, labelled, write_shard
from helpers.training import SIZE, TINY, make_tokenizer
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from tokencache.training.collate import COUNTS, Collator

MAX_LENGTH = 24
PACKINGS = ("none", "best_fit")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "small")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=PACKINGS)
def cache(request, tmp_path_factory):
    """A cache with a loss mask: its folder, its DatasetDict, and its documents."""
    random = np.random.default_rng(0)
    documents = []
    for _ in range(40):
        ids = random.integers(2, SIZE, int(random.integers(3, 12))).tolist()
        documents.append((ids, [n > len(ids) // 3 for n in range(len(ids))]))
    folder = tmp_path_factory.mktemp("cache")
    paths = {
        "train": [write_shard(folder / "train.arrow", documents[:28], masked=True)],
        "validation": [write_shard(folder / "validation.arrow", documents[28:], masked=True)],
    }
    wanted = entry(MAX_LENGTH, packing=request.param, validation="given")
    found, _ = build(folder / "cache", paths, wanted)
    assert ("seq_lengths" in found["train"].column_names) == (request.param == "best_fit")
    return folder / "cache", found, documents


def make_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=SIZE, **TINY, eos_token_id=1, bos_token_id=1))


def settings(folder, **more):
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 100, "report_to": [], "save_strategy": "no",
        "use_cpu": True, "logging_steps": 1, "disable_tqdm": True, **more,
    }  # fmt: skip


def loss_of_documents(model, documents):
    """The mean loss of what is trained on, each document alone."""
    total = targets = 0
    model.eval()
    with torch.no_grad():
        for ids, mask in documents:
            labels = torch.tensor([labelled(ids, mask)])
            count = int((labels[:, 1:] != -100).sum())
            total += model(torch.tensor([ids]), labels=labels).loss.item() * count
            targets += count
    return total / targets


def files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def check(trainer, model, documents):
    """The loss before and after two steps is that of each document alone, by its mask."""
    wanted = loss_of_documents(model, documents[28:])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    trainer.train()
    trained = loss_of_documents(model, documents[28:])
    assert trained != pytest.approx(wanted, rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trained, rel=1e-5)


def test_trainer_of_transformers(cache, tokenizer, tmp_path):
    folder, found, documents = cache
    before, model = files(folder), make_model()
    packed = "seq_lengths" in found["train"].column_names
    own = Collator(tokenizer.pad_token_id, MAX_LENGTH, packed=True)

    def of_packed(rows):
        batch = own([{name: np.array(values) for name, values in row.items()} for row in rows])
        del batch[COUNTS]
        return batch

    arguments = TrainingArguments(**settings(tmp_path, remove_unused_columns=not packed))
    trainer = Trainer(
        model,
        arguments,
        data_collator=of_packed if packed else DataCollatorForSeq2Seq(tokenizer),
        train_dataset=found["train"],
        eval_dataset=found["validation"],
    )
    check(trainer, model, documents)
    assert files(folder) == before


@pytest.mark.parametrize("cache", ["best_fit"], indirect=True)
def test_packed_rows_one_a_batch_need_no_collator_of_ours(cache, tokenizer, tmp_path):
    """Its default collator takes rows of one length: one row a batch is enough for that."""
    _, found, documents = cache
    model = make_model()
    arguments = TrainingArguments(**settings(tmp_path, per_device_train_batch_size=1))
    trainer = Trainer(model, arguments, train_dataset=found["train"])
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(batch) == ["input_ids", "labels", "position_ids"]
    assert batch["input_ids"].dtype == torch.int64
    model.eval()
    rows = trainer.get_eval_dataloader(found["validation"].select([0]))
    first = found["validation"][0]
    stops = np.cumsum(first["seq_lengths"]).tolist()
    parts = [first["input_ids"][a:b] for a, b in zip([0, *stops], stops, strict=False)]
    alone = [d for d in documents if d[0] in parts]
    with torch.no_grad():
        loss = model(**next(iter(rows)), use_cache=False).loss.item()
    assert loss == pytest.approx(loss_of_documents(model, alone), rel=1e-5)
    trainer.train()


def test_sft_trainer_of_trl(cache, tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    folder, found, documents = cache
    before, model = files(folder), make_model()
    packed = "seq_lengths" in found["train"].column_names
    # max_length=None: the rows are as long as they shall be, and TRL must not map over them.
    # padding_free tells the documents of a packed row apart, by its seq_lengths.
    arguments = trl.SFTConfig(
        **settings(tmp_path, max_length=None, padding_free=packed, bf16=False)
    )
    trainer = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=found["train"],
        eval_dataset=found["validation"],
        processing_class=tokenizer,
    )
    assert trainer.train_dataset.column_names == found["train"].column_names
    assert trainer.train_dataset[:] == found["train"][:]
    batch = next(iter(trainer.get_eval_dataloader()))
    labels = [label for row in found["validation"]["labels"] for label in row]
    in_batch = batch["labels"].flatten().tolist()
    assert [n for n in in_batch if n != -100] == [n for n in labels if n != -100]
    if packed:
        positions = [n for row in found["validation"]["position_ids"] for n in row]
        assert batch["position_ids"].flatten().tolist() == positions
    check(trainer, model, documents)
    assert files(folder) == before
