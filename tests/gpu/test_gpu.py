"""What only a GPU can show: its attention kernels, precision, compilation, FSDP2 and resuming.

`make gpu-test` runs these; elsewhere they skip. One H100 takes about three minutes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import (
    MAX_LENGTH,
    SIZE,
    SOURCES,
    deterministic,
    make_cache,
    make_run,
    records,
    stop_at,
    trained,
)
from transformers import AutoConfig, AutoModelForCausalLM

from tokencache.operate.checks import FAIL, OK, gpu
from tokencache.training import attention, hardware
from tokencache.training.collate import COUNTS, Collator
from tokencache.training.packed_attention import VARLEN
from tokencache.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]

# Heads of 64 dimensions: flash kernels want multiples of 8, FlexAttention 16 at least.
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 512, "num_hidden_layers": 2}  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 64},
    "mistral": {"sliding_window": 8},
}
ROWS = ((9, 1, 14, 8), (20, 6, 6), (32,))


@pytest.fixture(scope="module")
def packed_cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("packed") / "cache", packed=True, rows=96)


@pytest.fixture
def fewest_random_choices(monkeypatch):
    """Sums in an order that does not change: CUDA's own are else not repeatable."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def make_model(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **WIDE, vocab_size=SIZE, **FAMILIES[family])
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to("cuda")


def packed_rows():
    """Rows of documents, as a cache has them."""
    rows, ids = [], np.arange(len(ROWS) * MAX_LENGTH).reshape(len(ROWS), -1) * 31 % SIZE
    for lengths, row in zip(ROWS, ids, strict=True):
        rows.append({
            "input_ids": row, "labels": row,
            "position_ids": np.concatenate([np.arange(n) for n in lengths]),
            "seq_lengths": np.array(lengths),
        })  # fmt: skip
    return rows


def weighed(logits):
    """A sum to which each logit counts differently."""
    weights = torch.arange(logits.shape[-2] * logits.shape[-1], device=logits.device)
    return (logits.float() * weights.view(logits.shape[-2:]).cos()).sum()


def gradients(model):
    found = {n: w.grad.float().clone() for n, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def alone(model):
    """Logits of each document by itself, and the gradients of a sum of them, in float32."""
    found = []
    for row in packed_rows():
        parts = torch.from_numpy(row["input_ids"]).cuda().split(row["seq_lengths"].tolist())
        logits = torch.cat([model(part[None], use_cache=False).logits for part in parts], 1)
        weighed(logits).backward()
        found.append(logits.detach())
    return torch.cat(found), gradients(model)


@pytest.mark.parametrize("name", ["sdpa", VARLEN, "flex_attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_logits_and_gradients_that_they_have_alone(family, name):
    model = make_model(family)
    logits, wanted = alone(model)
    half = name in attention.IN_HALF
    precision = "bfloat16" if half else "float32"
    attention._take(model, name, precision, True)
    batch = Collator(0, MAX_LENGTH, True)(packed_rows())
    batch.pop(COUNTS), batch.pop("labels")
    batch = {k: v.cuda() if torch.is_tensor(v) else v for k, v in batch.items()}
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        packed = model(**batch).logits
    for row in packed:
        weighed(row[None]).backward(retain_graph=True)
    found = gradients(model)
    # bfloat16 keeps 8 bits; a document that sees its neighbour is off by more than the spread.
    off = (packed.float() - logits).abs().median() / logits.std()
    assert off < (0.02 if half else 1e-4)
    for key, value in wanted.items():
        distance = (found[key] - value).norm() / value.norm().clamp(min=1e-9)
        assert distance < (0.08 if half else 1e-3), key


def test_packed_rows_take_varlen_attention_by_themselves(packed_cache, tokenizer, tmp_path, capsys):
    run = make_run(packed_cache, tokenizer, architecture=WIDE, max_steps=2)
    out = trained(run, tmp_path)
    assert f"attention {VARLEN} (auto: " in capsys.readouterr().err
    about = json.loads((out / "run.json").read_text())
    assert about["attention"] == VARLEN and about["precision"] == "bfloat16"
    [*_, last] = [record for record in records(out) if "mfu" in record]
    assert hardware.peak(torch.cuda.get_device_name()) is None or last["mfu"] is not None


def losses(out):
    return [record["loss"] for record in records(out) if "loss" in record]


def test_bfloat16_and_compiled_models_learn_as_float32_does(packed_cache, tokenizer, tmp_path):
    common = {"max_steps": 24, "logging_steps": 4}
    runs = {
        "float32": {"precision": "float32", "attn_implementation": "sdpa"},
        "bfloat16": {"precision": "bfloat16", "attn_implementation": "sdpa"},
        VARLEN: {"precision": "bfloat16", "attn_implementation": VARLEN},
        "flex": {"precision": "bfloat16", "attn_implementation": "flex_attention"},
        "compiled": {"precision": "bfloat16", "torch_compile": True},
    }
    found = {}
    for name, settings in runs.items():
        run = make_run(packed_cache, tokenizer, architecture=WIDE, **common, **settings)
        (tmp_path / name).mkdir()
        found[name] = losses(trained(run, tmp_path / name))
    assert found["float32"][-1] < found["float32"][0] / 1.5
    for name in runs:
        # What bfloat16 rounds off adds up: later losses differ by more.
        assert found[name][:4] == pytest.approx(found["float32"][:4], rel=0.03), name
        assert found[name] == pytest.approx(found["float32"], rel=0.15), name


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    packed, tokenizer, tmp_path, monkeypatch, fewest_random_choices
):
    cache = make_cache(tmp_path / "cache", packed=packed)
    run = make_run(cache, tokenizer, architecture=WIDE, max_steps=8, save_steps=3,
                   attn_implementation="sdpa")  # fmt: skip
    (tmp_path / "whole").mkdir(), (tmp_path / "stopped").mkdir()
    whole = trained(run, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, 3)
        trained(run, tmp_path / "stopped")
    assert deterministic(trained(run, tmp_path / "stopped")) == deterministic(whole)


def test_a_run_with_varlen_attention_goes_on_nearly_as_it_was(
    packed_cache, tokenizer, tmp_path, monkeypatch
):
    """The backward pass of flash kernels adds in any order, so the last bits differ."""
    run = make_run(packed_cache, tokenizer, architecture=WIDE, max_steps=8, save_steps=3,
                   logging_steps=1)  # fmt: skip
    (tmp_path / "whole").mkdir(), (tmp_path / "stopped").mkdir()
    whole = trained(run, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, 3)
        trained(run, tmp_path / "stopped")
    assert losses(trained(run, tmp_path / "stopped")) == pytest.approx(losses(whole), rel=0.01)


def in_one_process(run, folder):
    """Train in a process that torchrun would start: the first of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "TORCHELASTIC_RUN_ID": "one",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path]),
    }
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)
    return folder / "out"


def test_fsdp_with_one_process_is_the_plain_run(packed_cache, tokenizer, tmp_path):
    common = {"max_steps": 8, "logging_steps": 1, "attn_implementation": "sdpa"}
    run = make_run(packed_cache, tokenizer, architecture=WIDE, precision="float32", **common)
    parted = run | {"training": run["training"] | {"fsdp": True}}
    plain, found = trained(run, tmp_path), in_one_process(parted, tmp_path / "fsdp")
    assert losses(found) == pytest.approx(losses(plain), rel=1e-3)


def test_doctor_names_the_gpu_and_its_fast_kernels():
    found = list(gpu.check())
    assert not [finding for finding in found if finding.state == FAIL]
    said = " ".join(finding.said for finding in found)
    assert torch.cuda.get_device_name() in said and "on cuda: flash" in said
    assert found[-1].state == OK


if __name__ == "__main__":  # see in_one_process
    from tokencache.training import sharded

    folder = Path(sys.argv[1])
    sharded.wanted = lambda run: run["training"]["fsdp"]  # which one process is not asked for
    train(json.loads((folder / "run.json").read_text()), folder / "out", folder / ".checkpoints")
