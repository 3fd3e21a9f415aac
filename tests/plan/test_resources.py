"""What jobs ask a cluster for, by the size of their work."""

import json
import os
import re

import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, rows

from tokencache.config.schema import Training
from tokencache.plan import resources
from tokencache.plan.plan import Plan

MIB = 2**20
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}


def plan(sizes, compression=None, **run):
    """A plan of one target of each kind, over shards of these sizes in bytes."""
    shards = {f"s{n}": {"bytes": b, "compression": compression} for n, b in enumerate(sizes)}
    tokens = {f"t{n}": {"shard": f"s{n}"} for n in range(len(sizes))}
    training = Training(**run.pop("training", {})).model_dump()
    made = {"cache": "cache", "tokenizer": "tokenizer", "weights": None, "lora": None,
            "architecture": TINY, "pairs": False}  # fmt: skip
    return Plan({
        "id": "1",
        "config": {"cache": "cache", "results": "results", "shard_size": 64 * MIB},
        "shards": shards,
        "tokens": tokens,
        "token_sets": {"set": {"splits": {"train": list(tokens)}}},
        "tokenizers": {
            "tokenizer": {"facts": {"vocab_size": 4096}, "texts": [["r", s] for s in shards]}
        },
        "caches": {"cache": {"token_set": "set", "max_length": 1024}},
        "runs": {"run": made | {"training": training} | run},
        "batches": {"batch": {"tokens": list(tokens)}},
        "fetches": {},
    })  # fmt: skip


def of_rules(made):
    return [
        resources.tokenizing(made, "batch"),
        resources.training_tokenizer(made, "tokenizer"),
        resources.packing(made, "cache"),
        resources.training(made, "run"),
    ]


def test_small_work_asks_for_little():
    for needs in of_rules(plan([1000, 2000], training={"max_steps": 1})):
        assert needs.threads <= 2
        assert 1000 <= needs.mem_mb <= 6000
        assert needs.minutes <= 10


def test_more_text_asks_for_more():
    small, large = (of_rules(plan([64 * MIB] * n)) for n in (1, 64))
    for few, many in zip(small, large, strict=True):
        assert many.minutes > few.minutes
        assert many.mem_mb >= few.mem_mb
    # A batch streams: its memory is that of one shard.
    assert large[0].mem_mb == small[0].mem_mb


def test_what_is_compressed_or_not_fetched_counts_as_text():
    packed, plain = resources.tokenizing(plan([MIB], "gzip"), "batch"), plan([5 * MIB])
    assert packed == resources.tokenizing(plain, "batch")
    unknown = resources.tokenizing(plan([None]), "batch")
    assert unknown == resources.tokenizing(plan([64 * MIB]), "batch")


def test_an_attempt_asks_for_twice_what_the_one_before_did():
    first = resources.tokenizing(plan([64 * MIB]), "batch")
    assert first.of_attempt(1) == first
    third = first.of_attempt(3)
    assert (third.threads, third.mem_mb, third.minutes) == (
        first.threads, 4 * first.mem_mb, 4 * first.minutes
    )  # fmt: skip
    assert first.of_attempt(20) == third
    long = resources.tokenizing(plan([16 * 1024 * MIB]), "batch")
    assert long.of_attempt(3).minutes == 24 * 60


@pytest.mark.parametrize("source", ["architecture", "folder", "hub"])
def test_a_larger_model_asks_for_more(source, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    (tmp_path / "model.safetensors").write_bytes(bytes(10 * MIB))
    run = {
        "architecture": {"architecture": LARGE},
        "folder": {"weights": {"path": str(tmp_path)}, "architecture": None},
        "hub": {"weights": {"path": None}, "architecture": None},
    }[source]
    steps = {"training": {"max_steps": 10}}
    tiny = resources.training(plan([MIB], **steps), "run")
    found = resources.training(plan([MIB], **run, **steps), "run")
    assert (tiny.threads, found.threads) == (1, 8)
    assert found.mem_mb > tiny.mem_mb
    assert found.minutes > tiny.minutes


def test_each_submitted_job_has_its_limits_and_waits_for_none_here(tmp_path):
    make_tokenizer("bos_eos", tmp_path / "w/tokenizer")
    config = {
        "models": {"one": {"tokenizer": "tokenizer", "architecture": TINY}},
        "datasets": {"qa": {"files": "data", "document": {"text": "{prompt}"}}},
        "max_length": [32],
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
    }
    workflow = Workflow.new(tmp_path / "w", config, {"data/a.jsonl": rows(80)})
    output = workflow.run("-n")
    for rule in ("tokenize", "pack", "train"):
        (said,) = re.findall(
            rf"^rule {rule}:.*?resources: (.*?)$", output, re.DOTALL | re.MULTILINE
        )
        assert "mem_mb=" in said
        assert "runtime=" in said


def test_all_experts_need_memory_and_few_of_them_time(tmp_path):
    """Whether they are an architecture's or lie in files."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    training = {"max_steps": 500, "per_device_train_batch_size": 1}

    def needs(more, **given):
        run = {"architecture": sizes | more, "training": dict(training)} | given
        return resources.training(plan([MIB], **run), "run")

    dense = needs({})
    assert needs({"num_experts": 1, "num_experts_per_tok": 1}) == dense
    many = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 2048}
    assert needs(many).mem_mb > 2 * dense.mem_mb
    assert needs(many).minutes == dense.minutes
    few = many | {"num_experts": 2, "num_experts_per_tok": 1}
    assert needs(few).mem_mb == dense.mem_mb and needs(few).minutes < dense.minutes
    assert needs(few | {"n_shared_experts": 1}).minutes == dense.minutes
    assert needs(many | {"first_k_dense_replace": 4}) == dense

    (tmp_path / "model.safetensors").write_bytes(b"")
    os.truncate(tmp_path / "model.safetensors", 2**30)  # of weights of 2 bytes
    found = []
    for mixture in ({}, {"num_experts": 8, "num_experts_per_tok": 1}):
        (tmp_path / "config.json").write_text(json.dumps({"text_config": sizes | mixture}))
        found.append(needs({}, weights={"path": str(tmp_path)}, architecture=None))
    assert found[1].mem_mb == found[0].mem_mb and found[1].minutes < 0.5 * found[0].minutes
