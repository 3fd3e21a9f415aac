"""One run on several processes and nodes: the result of one process, whole or not there."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from training import SOURCES, make_cache, make_run, records, trained

pytestmark = pytest.mark.usefixtures("one_thread")

RANK = """
import json, sys
from pathlib import Path
from tokencache import train
train.train(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def torchrun(run, folder, processes):
    """A run on several processes of this machine, as torchrun starts them; its log."""
    folder.mkdir(exist_ok=True)
    (folder / "rank.py").write_text(RANK)
    out = folder / "out"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", str(folder / "rank.py"),
        json.dumps(run), str(out), str(folder / ".out.checkpoints"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_nearly_equal(some, other):
    """Sums in another order differ in the last digits."""
    for name in ("loss", "validation_loss", "grad_norm", "learning_rate", "tokens", "documents"):
        found = [[r[name] for r in records(out) if name in r] for out in (some, other)]
        assert found[0] == pytest.approx(found[1], rel=1e-4), name
    assert [r["step"] for r in records(some)] == [r["step"] for r in records(other)]
    weights = [load_file(out / "model.safetensors") for out in (some, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("packed", "settings"),
    [
        # 45 rows are five steps of 8 and one of 5, which is 3 rows for one rank, 2 for the other.
        (False, {"per_device_train_batch_size": 8}),
        # A last step of one row, which only one rank has; batches of 1 and 2 rows.
        (False, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        (True, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}),
        (False, {"gradient_checkpointing": True, "max_steps": 3}),
    ],
)
def test_two_processes_are_as_good_as_one(packed, settings, tokenizer, tmp_path):
    cache = make_cache(tmp_path / "cache", packed=packed, rows=45)
    run = make_run(cache, tokenizer, logging_steps=1, num_train_epochs=2, **settings)
    alone = trained(run, tmp_path / "alone")
    log = torchrun(run, tmp_path / "two", 2)
    assert "2 processes on 1 node" in log and log.count("documents are kept apart") == packed
    assert_nearly_equal(tmp_path / "two" / "out", alone)
