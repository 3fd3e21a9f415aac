"""Small tokenizers, caches and runs of the plan for the tests of training."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerFast

from tokencache.base.hashing import hash_file
from tokencache.config.references import Reference
from tokencache.config.schema import Lora, Training
from tokencache.errors import UserError
from tokencache.sources.weights import identity
from tokencache.tokenizer import given
from tokencache.training import checkpoints as saved
from tokencache.training import metrics
from tokencache.training import run as train
from tokencache.training.collate import IGNORED

SIZE = 96  # tokens in the vocabulary
EOS = 1
MAX_LENGTH = 32
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
SOURCES = Path(train.__file__).parents[1]


def make_tokenizer(folder):
    """A folder with a tokenizer that has no pad token: eos is used."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<unk>", "</s>", *(f"w{n}" for n in range(SIZE - 2))]
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    fast.pad_token = "</s>"
    folder.mkdir()
    given.save(fast, folder, given.facts_of(fast))
    return folder


def documents(count, seed):
    """Documents that count up from a random token, so that there is something to learn."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        start, length = random.integers(2, SIZE), random.integers(2, 14)
        found.append([*((start + np.arange(length)) % (SIZE - 2) + 2).tolist(), EOS])
    return found


def make_split(found, packed):
    if not packed:
        return {"input_ids": found, "labels": found}
    rows = {"input_ids": [], "labels": [], "position_ids": [], "seq_lengths": []}
    for at in range(0, len(found), 2):
        pair = found[at : at + 2]
        rows["input_ids"].append([token for d in pair for token in d])
        rows["labels"].append([t for d in pair for t in [IGNORED, *d[1:]]])
        rows["position_ids"].append([n for d in pair for n in range(len(d))])
        rows["seq_lengths"].append([len(d) for d in pair])
    return rows


def make_cache(folder, packed=False, rows=48, validation=9):
    splits = {"train": documents(rows, 1), "validation": documents(validation, 2)}
    types = {"input_ids": "uint16"}
    made = {}
    for name, found in splits.items():
        if found:
            columns = make_split(found, packed)
            features = Features({c: List(Value(types.get(c, "int32"))) for c in columns})
            made[name] = Dataset.from_dict(columns, features=features)
    return save(DatasetDict(made), folder)


def save(made, folder):
    """Write a cache as the workflow does."""
    made.save_to_disk(folder)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size}
        for path in folder.rglob("*")
        if path.is_file()
    }
    about = {"key": "c" * 32, "files": files, "splits": dict.fromkeys(made)}
    (folder / "cache.json").write_text(json.dumps(about))
    return folder


def make_run(cache, tokenizer, weights=None, architecture=None, lora=None, **training):
    defaults = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "warmup_ratio": 0.1,
    }
    if "max_tokens" in training:
        del defaults["per_device_train_batch_size"]
    planned = None
    if weights is None:
        architecture = {"model_type": "llama", **TINY, **(architecture or {})}
    else:
        reference = Reference(path=str(weights))
        if weights.exists():
            planned = identity(
                reference, False, lambda files: list(map(hash_file, files)), "weights"
            )
        weights = reference.model_dump()
    return {
        "key": "a" * 32,
        "model": "small",
        "dataset": "texts",
        "max_length": MAX_LENGTH,
        "cache": str(cache),
        "cache_key": "c" * 32,
        "rows_key": "c" * 32,
        "tokenizer": str(tokenizer),
        "chat": False,
        "tools": False,
        "chat_template": None,
        "tool_template": None,
        "tokenizer_settings": {},
        "weights": weights,
        "weights_folder": weights and weights["path"],
        "weights_identity": planned,
        "pairs": False,
        "lora": None if lora is None else Lora(**lora).model_dump(),
        "architecture": architecture,
        "trust_remote_code": False,
        "training": Training(**(defaults | training)).model_dump(),
    }


def trained(run, folder):
    """The folder of results of a run."""
    out = folder / "out"
    train.train(run, out, folder / ".out.checkpoints")
    return out


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def deterministic(out):
    """Everything that must not depend on when and how often the run was started."""
    without = [{k: v for k, v in r.items() if k not in metrics.TIMED} for r in records(out)]
    timed = ("metrics.jsonl", "timing.json", "throughput.svg", "provenance.json", "manifest.json")
    names = [f.name for f in sorted(out.iterdir()) if f.name not in timed]
    return without, {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in names}


def refused(run, folder):
    """The message of a run that must leave nothing behind."""
    with pytest.raises(UserError) as caught:
        trained(run, folder)
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out.*.tmp"))
    return str(caught.value)


def stop_at(monkeypatch, step):
    """Make a run fail after the checkpoint of this step."""
    rotate = saved.rotate

    def rotate_and_stop(folder, *how):
        rotate(folder, *how)
        if Path(folder, f"checkpoint-{step}").exists():
            raise InterruptedError

    monkeypatch.setattr(saved, "rotate", rotate_and_stop)


def resumed_to_the_byte(run, step, folder, monkeypatch):
    """Check that a run that is stopped at a step ends as one that is not; the names of the files
    that its checkpoint had."""
    undisturbed = trained(run, folder / "undisturbed")
    stopped = folder / "stopped"
    stopped.mkdir()
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, step)
        trained(run, stopped)
    files = {file.name for file in stopped.glob(f".out.checkpoints/checkpoint-{step}/*")}
    assert deterministic(trained(run, stopped)) == deterministic(undisturbed)
    assert json.loads((stopped / "out/timing.json").read_text())["resumed_from_step"] == step
    return files


def loss_alone(model, found):
    """The loss of documents one by one, averaged over their targets."""
    total = targets = 0
    with torch.no_grad():
        for document in found:
            ids = torch.tensor([document])
            total += model(ids, labels=ids).loss.item() * (len(document) - 1)
            targets += len(document) - 1
    return total / targets
