"""Runs that are told to stop, checkpoints by the clock, and the best of them."""

import ast
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers.training import deterministic, make_cache, make_run, records, refused, stop_at, trained
from snakemake.jobs import ResourceList
from snakemake.utils import QuotedFormatter
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from test_run import start, wait_until
from transformers import AutoModelForCausalLM

from tokencache.base import lease
from tokencache.errors import Stopped
from tokencache.plan.plan import building_path
from tokencache.training import checkpoints as saved
from tokencache.training.collate import Collator
from tokencache.training.stopping import Interruptions
from tokencache.workflow import slurm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(cache, tokenizer, tmp_path_factory):
    """A run whose checkpoints, records and validations fall on different steps."""
    run = make_run(
        cache, tokenizer, None, {"attention_dropout": 0.1}, num_train_epochs=5, save_steps=500,
        logging_steps=7, eval_steps=5,
    )  # fmt: skip
    return run, trained(run, tmp_path_factory.mktemp("undisturbed"))


def resumed_from(folder):
    return json.loads((folder / "out/timing.json").read_text())["resumed_from_step"]


def test_a_process_that_is_told_to_end_leaves_a_checkpoint(cache, tokenizer, tmp_path):
    """As a scheduler does it: all of its processes are told."""
    run = make_run(cache, tokenizer, max_steps=10**6, dataloader_num_workers=1)
    with open(tmp_path / "log", "w") as log:
        child = start(run, tmp_path, stderr=log)
    wait_until(lambda: "first loss" in (tmp_path / "log").read_text())
    workers = psutil.Process(child.pid).children(recursive=True)
    assert workers
    for process in [*workers, child]:
        process.send_signal(signal.SIGTERM)
    assert child.wait(120) == 128 + signal.SIGTERM and not (tmp_path / "out").exists()
    assert not psutil.wait_procs(workers, 10)[1]
    said = (tmp_path / "log").read_text().splitlines()[-1]
    step = saved.newest(tmp_path / ".out.checkpoints", run["key"]).step
    assert said.startswith(f"stopped by SIGTERM after step {step} of 1000000, with a checkpoint")


def signal_at(monkeypatch, batch):
    """Send this process SIGUSR1 while it makes its n-th batch, those of validations counted."""
    collate, made = Collator.__call__, []

    def collate_and_tell(self, rows):
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            return collate(self, rows)  # of the checks before the training
        made.append(len(rows))
        if len(made) == batch:
            os.kill(os.getpid(), signal.SIGUSR1)
        return collate(self, rows)

    monkeypatch.setattr(Collator, "__call__", collate_and_tell)


# Of 9 rows, a validation makes 2 batches: before the first step, and after each fifth one. Those of
# the training are made one ahead.
@pytest.mark.parametrize(
    ("batch", "step"),
    [(1, 0), (5, 2), (8, 5), (9, 5), (10, 6)],
    ids=["before it begins", "between records", "before a validation", "in one", "after one"],
)
def test_told_to_stop_anywhere(batch, step, undisturbed, tmp_path, monkeypatch):
    run, other = undisturbed
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGUSR1") as caught:
        signal_at(patch, batch)
        trained(run, tmp_path)
    assert caught.value.status == 128 + signal.SIGUSR1
    assert f"after step {step} of 60" in str(caught.value)
    found = [path.name for path in tmp_path.glob(".out.checkpoints/checkpoint-*")]
    assert found == [f"checkpoint-{step}"] * (step > 0)
    assert deterministic(trained(run, tmp_path)) == deterministic(other)
    assert resumed_from(tmp_path) == (step or None)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_signal_in_the_last_step_changes_nothing(undisturbed, tmp_path, monkeypatch):
    run, _ = undisturbed
    run = run | {"training": run["training"] | {"max_steps": 5}}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as the rule's shell leaves it
    signal_at(monkeypatch, 8)
    assert records(trained(run, tmp_path))[-1]["step"] == 5
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_loss_that_is_not_a_number_makes_no_checkpoint(cache, tokenizer, tmp_path, monkeypatch):
    run = make_run(cache, tokenizer, learning_rate=1e30, warmup_ratio=0, max_grad_norm=0,
                   logging_steps=50, eval_steps=50)  # fmt: skip
    signal_at(monkeypatch, 8)
    assert "first loss that is not finite came at step 2" in refused(run, tmp_path)
    assert not list(tmp_path.glob(".out.checkpoints/checkpoint-*"))


def test_checkpoints_by_the_clock(undisturbed, tmp_path, monkeypatch):
    run, other = undisturbed
    often = run | {"training": run["training"] | {"save_minutes": 1e-9}}
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, 3)
        trained(often, tmp_path)
    rare = run | {"training": run["training"] | {"save_minutes": 60.0}}
    assert deterministic(trained(rare, tmp_path)) == deterministic(other)
    assert resumed_from(tmp_path) == 3


def test_a_run_that_goes_on_looks_as_often_as_it_is_told_now(
    cache, tokenizer, tmp_path, monkeypatch
):
    often = {"save_steps": 3, "logging_steps": 4, "eval_steps": 4}
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, 3)
        trained(make_run(cache, tokenizer, max_steps=12, **often), tmp_path)
    often = {"save_steps": 5, "logging_steps": 2, "eval_steps": 7}
    run = make_run(cache, tokenizer, max_steps=12, **often)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at(patch, 5)
        trained(run, tmp_path)
    out = trained(run, tmp_path)
    found = records(out)
    assert [r["step"] for r in found if "loss" in r] == [1, 3, 4, 5, 6, 7, 8, 10, 12]
    assert [r["step"] for r in found if "validation_loss" in r] == [0, 7, 12]


def test_when_a_checkpoint_is_due():
    assert Interruptions(None).asked() == (None, False)
    soon = Interruptions(1e-9)
    assert soon.asked() == (None, True)
    late = Interruptions(60)
    assert late.asked() == (None, False)


def test_slurm_tells_trainings_before_their_time_is_over():
    params = dict.fromkeys(
        ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir"), ""
    )

    def call(name, **asked):
        job = SimpleNamespace(name=name, threads=1, resources=ResourceList(fromdict=asked))
        return slurm.with_a_warning(get_submit_command)(job, params)

    assert "--signal" not in call("tokenize", runtime=10)
    assert call("train", runtime=10).endswith(" --signal=TERM@120")
    assert call("train", runtime=4).endswith(" --signal=TERM@60")
    assert call("train").endswith(" --signal=TERM@120")
    assert call("train", slurm_extra="--signal=USR1@9").count("--signal") == 1


@pytest.fixture(scope="module")
def overfitted(cache, tokenizer, tmp_path_factory):
    """A run whose validation loss falls and rises again, and its folder."""
    run = make_run(
        cache, tokenizer, num_train_epochs=10, eval_steps=10, learning_rate=0.05, save_steps=500,
        load_best_model_at_end=True, save_total_limit=1,
    )  # fmt: skip
    return run, trained(run, tmp_path_factory.mktemp("best"))


def test_the_result_has_the_best_weights(overfitted, tokenizer, tmp_path):
    run, out = overfitted
    losses = {r["step"]: r["validation_loss"] for r in records(out) if "validation_loss" in r}
    best = min(losses, key=losses.get)
    facts = json.loads((out / "run.json").read_text())
    assert 0 < best < facts["steps"] == 120 and losses[best] < losses[120] - 0.01
    assert facts["weights_of_step"] == best and facts["validation_loss"] == losses[best]
    again = make_run(run["cache"], tokenizer, weights=out, max_steps=1)
    found = records(trained(again, tmp_path))[0]["validation_loss"]
    assert found == pytest.approx(losses[best], rel=1e-6)
    assert AutoModelForCausalLM.from_pretrained(out).config.use_cache


def test_the_best_is_found_again_after_a_stop(overfitted, tmp_path, monkeypatch):
    run, out = overfitted
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        signal_at(patch, 130)
        trained(run, tmp_path)
    kept = [saved._step(path) for path in tmp_path.glob(".out.checkpoints/checkpoint-*")]
    best = json.loads((out / "run.json").read_text())["weights_of_step"]
    assert best in kept and len(kept) == 2
    assert deterministic(trained(run, tmp_path)) == deterministic(out)


def test_the_best_and_the_last_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    saved.rotate(tmp_path, 2, {2: 3.0, 3: 1.0, 4: 2.0, 8: 2.5})
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["4", "6", "8"]
    saved.rotate(tmp_path, 1, {4: 2.0, 8: 1.9})
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["8"]


def test_the_best_needs_a_validation(tokenizer, tmp_path):
    cache = make_cache(tmp_path / "cache", validation=0)
    run = make_run(cache, tokenizer, load_best_model_at_end=True)
    assert "load_best_model_at_end: " in refused(run, tmp_path)


# Stands for a training that is told to stop.
TOLD = """#!/bin/bash
trap 'echo told; exit 143' TERM
echo started
while :; do sleep 0.05; done
"""


def shell_line(rule, **values):
    """A rule's shell line as snakemake runs it."""
    text = (Path(__file__).parents[2] / f"rules/{rule}.smk").read_text().partition("shell:")[2]
    lines = (line.strip() for line in text.splitlines())
    literal = "".join(ast.literal_eval(line) for line in lines if line.startswith('"'))
    return "set -euo pipefail; " + QuotedFormatter().format(literal, **values)


def test_a_signal_reaches_a_training_from_its_first_moment(tmp_path):
    """A shell that ignores signals would start one that can't hear them."""
    (tmp_path / "tokencache").write_text(TOLD)
    (tmp_path / "tokencache").chmod(0o755)
    log = tmp_path / "log"
    line = shell_line("train", params=SimpleNamespace(plan="plan", within=""), threads=1,
                      output="out", log=str(log))  # fmt: skip
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = subprocess.Popen(
        ["bash", "-c", line], start_new_session=True, env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: log.exists() and "started" in log.read_text())
        os.killpg(job.pid, signal.SIGTERM)
        assert job.wait(20) == 128 + signal.SIGTERM
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert log.read_text().endswith("told\n")


def test_a_signal_ends_a_job_that_waits_for_another(tmp_path):
    """Also where what started it ignores signals."""
    names = ("shards", "tokens", "token_sets", "tokenizers", "fetches", "caches", "runs", "batches")
    config = {"cache": "cache", "results": "results"}
    plan, target = tmp_path / "plan.json", tmp_path / "results/one/qa/32-0123456789ab"
    plan.write_text(json.dumps({"id": "some", "config": config} | {name: {} for name in names}))
    about = {"host": "elsewhere", "pid": 7}
    taken = lease.take(building_path(target), about)
    with lease.held(taken):
        words = ["train", "--plan", str(plan), str(target)]
        job = subprocess.Popen(
            [sys.executable, "-m", "tokencache", *words],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        )
        try:
            said = itertools.takewhile(lambda line: "waiting until it ends" not in line, job.stderr)
            assert "Traceback" not in "".join(said)
            job.send_signal(signal.SIGTERM)
            assert job.wait(20) == -signal.SIGTERM
        finally:
            job.kill()
