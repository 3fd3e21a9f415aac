"""Training runs on small caches: exact losses, resumed to the byte, clear refusals."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.training import (
    EOS,
    SIZE,
    SOURCES,
    deterministic,
    documents,
    loss_alone,
    make_cache,
    make_run,
    make_split,
    records,
    refused,
    save,
    stop_at,
    trained,
)
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from tokencache.training import checkpoints as saved
from tokencache.training import model as models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def first(cache, tokenizer, tmp_path_factory):
    """One undisturbed run, two epochs with a checkpoint every five steps."""
    run = make_run(cache, tokenizer, num_train_epochs=2, save_steps=5)
    return run, trained(run, tmp_path_factory.mktemp("first"))


def test_results(first):
    run, out = first
    found = records(out)
    validation = [r for r in found if "validation_loss" in r]
    training = [r for r in found if "loss" in r]
    assert [r["step"] for r in validation] == [0, 12, 24]
    assert [r["step"] for r in training] == [1, 4, 5, 8, 10, 12, 15, 16, 20, 24]
    assert validation[-1]["validation_loss"] < validation[0]["validation_loss"] - 0.5
    assert training[0]["perplexity"] == pytest.approx(math.exp(training[0]["loss"]))
    assert all(r["tokens_per_second"] > 0 and r["grad_norm"] > 0 for r in training)
    tokens = sum(map(len, documents(48, 1)))
    assert training[-1]["tokens"] == 2 * tokens and training[-1]["documents"] == 96
    facts = json.loads((out / "run.json").read_text())
    assert facts["sane"] and facts["ln_vocab"] == pytest.approx(math.log(SIZE))
    assert facts["first_loss"] == training[0]["loss"]
    assert facts["validation_loss"] == validation[-1]["validation_loss"]
    assert facts["made_of"]["cache"] == run["rows_key"] and facts["steps"] == 24
    for plot in ("loss.svg", "throughput.svg"):
        assert (out / plot).read_text().startswith("<?xml")
    assert not (out.parent / ".out.checkpoints").exists()


def test_results_load_and_give_the_validation_loss_that_was_told(first):
    out = first[1]
    model, fast = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.use_cache and len(fast) == SIZE
    assert model.config.eos_token_id == model.generation_config.eos_token_id == EOS
    alone = loss_alone(model, documents(9, 2))
    assert alone == pytest.approx(records(out)[-1]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_the_embedding_of_an_eos_that_is_pad_too_is_trained(fine_tuned, first, tokenizer, tmp_path):
    # Only an eos with something after it is an input that a loss depends on.
    inside = [[5, 6, EOS, 7, 8, EOS, 9]] * 8
    columns = make_split(inside, packed=False)
    save(DatasetDict({"train": Dataset.from_dict(columns)}), tmp_path / "cache")
    weights = first[1] if fine_tuned else None
    run = make_run(tmp_path / "cache", tokenizer, weights=weights, max_steps=2)
    before = models.load(run, models.vocabulary(tokenizer)).get_input_embeddings().weight[EOS]
    model = AutoModelForCausalLM.from_pretrained(trained(run, tmp_path))
    assert model.config.pad_token_id == EOS
    after = model.get_input_embeddings().weight[EOS]
    assert before.abs().max() > 0
    assert (after - before).abs().max() > 1e-4


def test_same_seed_same_bytes_and_other_seed_others(first, tmp_path):
    run, out = first
    again = trained(run, tmp_path / "again")
    assert deterministic(again) == deterministic(out)
    other = run | {"training": run["training"] | {"seed": 7, "max_steps": 2}}
    weights = trained(other, tmp_path / "other") / "model.safetensors"
    assert weights.read_bytes() != (out / "model.safetensors").read_bytes()


CHILD = """
import json, sys
from pathlib import Path
from tokencache.training import checkpoints
from tokencache.training import run as train
from tokencache.errors import UserError
checkpoints.DEAD_AFTER = float(sys.argv[4])
try:
    train.train(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.status)
"""


def start(run, folder, *within, dead_after=60, **streams):
    """Training in a process of its own, in `folder` as `trained` does it."""
    folder.mkdir(exist_ok=True)
    words = [
        json.dumps(run),
        str(folder / "out"),
        str(folder / ".out.checkpoints"),
        str(dead_after),
    ]
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    command = [*within, sys.executable, "-c", CHILD, *words]
    return subprocess.Popen(command, env=environment, **streams)


def wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_run_goes_on_to_the_same_bytes(cache, tokenizer, tmp_path):
    # Dropout makes the result depend on the state of the random numbers as well.
    architecture = {"attention_dropout": 0.1}
    run = make_run(
        cache, tokenizer, None, architecture, num_train_epochs=12, save_steps=7, eval_steps=30,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    undisturbed = trained(run, tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    out, checkpoints = folder / "out", folder / ".out.checkpoints"
    child = start(run, folder, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(checkpoints.glob("checkpoint-*")))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not out.exists()
    # What a kill in the middle of a save leaves, and a checkpoint that lost some bytes.
    (checkpoints / ".checkpoint-999.x.tmp").mkdir()
    (checkpoints / "checkpoint-999").mkdir()
    trained(run, folder)
    assert deterministic(out) == deterministic(undisturbed)
    assert json.loads((out / "timing.json").read_text())["resumed_from_step"] >= 7


@pytest.fixture(scope="module")
def long(cache, tokenizer, tmp_path_factory):
    """A run with many checkpoints, and the folder of one that nobody disturbed."""
    run = make_run(
        cache, tokenizer, num_train_epochs=6, save_steps=3, eval_steps=30, save_total_limit=1
    )
    return run, trained(run, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def container(tmp_path):
    """Starts training where no other process can be seen, as in a container."""
    within = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    tried = subprocess.run([*within, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs process numbers of its own, and unshare says: {tried.stderr}")
    started = []

    def starter(run, folder, name, **more):
        with open(tmp_path / name, "w") as log:
            started.append(start(run, folder, *within, stderr=log, **more))
        return started[-1], tmp_path / name

    yield starter
    for process in started:
        process.kill()
        process.wait()


def test_copies_in_different_containers_train_one_after_the_other(long, container, tmp_path):
    run, undisturbed = long
    folder = tmp_path / "run"
    copies = [container(run, folder, name) for name in ("one", "other")]
    assert [process.wait(120) for process, _ in copies] == [0, 0]
    logs = sorted((log.read_text() for _, log in copies), key=len)
    assert "process 1 trains this run already, on" in logs[0]
    assert logs[0].endswith("out is there: another process made it\n")
    assert "trains this run" not in logs[1] and "Traceback" not in logs[1]
    assert deterministic(folder / "out") == deterministic(undisturbed)
    assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.mark.parametrize("back", ["while the other trains", "when the other has ended"])
def test_a_process_that_was_taken_for_dead_leaves_the_run_alone(back, long, container, tmp_path):
    run, undisturbed = long
    folder = tmp_path / "run"
    one, log = container(run, folder, "one")
    wait_until(lambda: list(folder.glob(".out.checkpoints/checkpoint-*")))
    [held_up] = psutil.Process(one.pid).children()
    held_up.suspend()
    other, other_log = container(run, folder, "other", dead_after=4)
    if back == "when the other has ended":
        assert other.wait(120) == 0
    else:
        wait_until(lambda: "goes on from the checkpoint" in other_log.read_text())
    held_up.resume()
    assert one.wait(120) == 1 and other.wait(120) == 0
    said = log.read_text()
    assert "so another one may train the run now" in said and "Traceback" not in said
    assert "process 1 trains this run already" in other_log.read_text()
    assert deterministic(folder / "out") == deterministic(undisturbed)
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_checkpoints_that_others_remove_at_the_same_time(tmp_path):
    for step in range(300):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(saved.rotate, [tmp_path] * 4, [1] * 4))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-299"]


@pytest.mark.parametrize("step", [10, 12, 24])
def test_resumed_anywhere(first, tmp_path, monkeypatch, step):
    # In the middle of an epoch, at the end of one, and when only the results are missing.
    run, out = first
    every = {10: 5, 12: 12, 24: 5}[step]
    run = run | {"training": run["training"] | {"save_steps": every}}
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, step)
        trained(run, tmp_path)
    assert (
        json.loads((trained(run, tmp_path) / "timing.json").read_text())["resumed_from_step"]
        == step
    )
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (out / weights).read_bytes()
    steps = [(r["step"], "loss" in r) for r in records(tmp_path / "out")]
    assert steps == sorted(set(steps), key=lambda s: (s[0], not s[1]))


def test_a_damaged_checkpoint_is_not_used(first, tmp_path, monkeypatch):
    run, out = first
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, 10)
        trained(run, tmp_path)
    damaged = tmp_path / ".out.checkpoints" / "checkpoint-10" / "optimizer.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert deterministic(trained(run, tmp_path)) == deterministic(out)
    assert json.loads((tmp_path / "out" / "timing.json").read_text())["resumed_from_step"] == 5
    assert saved.newest(tmp_path / "nothing", run["key"]) is None


def test_no_validation_split(tokenizer, tmp_path, capsys):
    cache = make_cache(tmp_path / "cache", validation=0)
    out = trained(make_run(cache, tokenizer, max_steps=2), tmp_path)
    facts = json.loads((out / "run.json").read_text())
    assert facts["validation_loss"] is None and facts["rows"] == {"train": 48}
    assert all("loss" in record for record in records(out))
    assert "no validation loss" in capsys.readouterr().err


def test_the_first_validation_can_be_left_out(cache, tokenizer, tmp_path):
    out = trained(make_run(cache, tokenizer, max_steps=2, eval_on_start=False), tmp_path)
    assert [r["step"] for r in records(out) if "validation_loss" in r] == [2]
    facts = json.loads((out / "run.json").read_text())
    assert facts["validation_loss_before"] is None and facts["validation_loss"] > 0


def test_the_log_is_plain_lines(cache, tokenizer, tmp_path, capfd):
    trained(make_run(cache, tokenizer, max_steps=4), tmp_path)
    printed, said = capfd.readouterr()
    assert printed == ""
    for part in ("device ", " threads, ", "train: 48 rows", "steps 4"):
        assert part in said
    for line in (
        "precision ",
        "attention sdpa (auto: ",
        "optimizer adamw_torch_fused: ",
        "workers 0 (",
        "batches 4 rows a step, ",
    ):
        assert f"\n{line}" in said  # fmt: skip
    assert "step 4/4  loss " in said and "{" not in said and "%|" not in said


def test_fine_tuning_goes_on_from_the_weights(first, cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer, weights=first[1], max_steps=2, gradient_checkpointing=True)
    found = records(trained(run, tmp_path))
    assert found[0]["validation_loss"] == records(first[1])[-1]["validation_loss"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["sane"]


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")),
        ("torch.save", OSError(28, "No space left on device")),
        (
            "transformers.modeling_utils.safe_save_file",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
    ],
)
def test_a_full_disk(function, error, cache, tokenizer, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(function, fail)
    assert "disk is" in refused(make_run(cache, tokenizer, save_steps=2), tmp_path)
    assert [f.name for f in (tmp_path / ".out.checkpoints").iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("warmup", [4, 6])
def test_a_run_that_only_warms_up(warmup, cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer, lr_scheduler_type="polynomial", warmup_steps=warmup,
                   max_steps=4, logging_steps=1)  # fmt: skip
    found = [r["learning_rate"] for r in records(trained(run, tmp_path)) if "loss" in r]
    assert found == pytest.approx([0.01 * step / warmup for step in range(4)])


def test_a_loss_that_is_not_a_number_stops_the_run(cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer, learning_rate=1e30, warmup_ratio=0, max_grad_norm=0)
    message = refused(run, tmp_path)
    assert "so the training is stopped; a lower training.learning_rate" in message


def test_a_first_loss_that_is_off_is_said(cache, tokenizer, tmp_path, capsys):
    run = make_run(cache, tokenizer, architecture={"initializer_range": 0.9}, max_steps=1)
    out = trained(run, tmp_path)
    assert not json.loads((out / "run.json").read_text())["sane"]
    assert "WARNING: first loss" in capsys.readouterr().err


def test_another_cache_than_the_planned_one(cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer) | {"cache_key": "d" * 32}
    assert "but the plan is for dddd" in refused(run, tmp_path)
    assert "cache.json is missing" in refused(run | {"cache": str(tmp_path)}, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_precision_on_a_cpu(cache, tokenizer, tmp_path):
    run = make_run(cache, tokenizer, precision="float16")
    assert "float16 needs a GPU" in refused(run, tmp_path)
    out = trained(make_run(cache, tokenizer, precision="bfloat16", max_steps=1), tmp_path)
    assert json.loads((out / "run.json").read_text())["precision"] == "bfloat16"
