"""Workflows on a real SLURM cluster of this machine, in real containers."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from conftest import make_tokenizer
from workflow import ROOT, TINY, Workflow, rows, write_rows

# In one worker with all that needs images or the cluster.
pytestmark = pytest.mark.xdist_group("cluster")

SCRIPTS = ROOT / "tests/cluster"
APPTAINER = "/opt/apptainer/usr/bin"
PROFILE = ("--profile", "slurm", "--profile", f"{SCRIPTS}/profile")


def script(name, *words, fails=False):
    done = subprocess.run([SCRIPTS / name, *words], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster():
    """A cluster that runs, and Apptainer on PATH, from the scripts that users have for it."""
    if os.geteuid() != 0 or 'VERSION_ID="12"' not in Path("/etc/os-release").read_text():
        pytest.skip("SLURM is installed and started by root of a Debian 12")
    script("install-apptainer.sh")
    script("install-slurm.sh")
    before = subprocess.run(["sinfo"], capture_output=True).returncode == 0
    script("start.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([APPTAINER, os.environ["PATH"]]))
        yield
    if not before:
        script("stop.sh")


def made_in(folder, **more):
    """Two models that share nothing but their data set, and one cache and one run of each."""
    for name in ("bos_eos", "llama"):
        make_tokenizer(name, folder / name)
    config = {
        "models": {
            "one": {"tokenizer": "bos_eos", "architecture": TINY},
            "two": {"tokenizer": "llama", "architecture": TINY},
        },
        "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
        "max_length": [32],
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
        "containers": {"base": "debian"},
    }
    workflow = Workflow.new(folder, config | more, {"data/a.jsonl": rows(80)})
    (ROOT / "images").mkdir(exist_ok=True)
    (folder / "images").symlink_to(ROOT / "images")
    return workflow


@pytest.fixture(scope="module")
def done(cluster, tmp_path_factory):
    """A workflow whose caches and runs were made by container jobs of the cluster."""
    workflow = made_in(tmp_path_factory.mktemp("cluster") / "w")
    workflow.planned = workflow.jobs(*PROFILE)
    workflow.output = workflow.run(*PROFILE)
    return workflow


def test_jobs_of_a_cluster_make_the_bytes_of_this_machine(done, tmp_path):
    local = made_in(tmp_path / "local")
    planned = local.jobs()
    assert {name: n for name, n in done.planned.items() if name != "build_image"} == planned
    local.run("caches")
    assert local.files("cache") == done.files("cache")
    assert len(done.targets("results")) == 2
    assert done.jobs(*PROFILE) == {}
    assert done.jobs() == {}


def test_the_summary_says_which_job_ran_on_which_node(done):
    found = re.findall(r"^(\S+) +(tokenize|pack|train) +(\S+)$", done.output, re.MULTILINE)
    assert {node for node, _, _ in found} == {"n1", "n2"}
    stages = sorted(stage for _, stage, _ in found)
    assert stages == ["pack", "pack", "tokenize", "tokenize", "train", "train"]
    table = done.output.partition("\nnode ")[2].split("\n\n")[0]
    assert table in done.tokencache("summary")


def test_a_target_and_what_is_stale_are_the_same_on_a_cluster(done, tmp_path):
    """One model's target, and a row that changed: the same jobs, and on the cluster none else."""
    workflow = done.copy(tmp_path / "w")
    write_rows(workflow.folder / "data/a.jsonl", rows(81))
    assert workflow.jobs("one", *PROFILE) == workflow.jobs("one") != workflow.jobs()
    workflow.run("one", *PROFILE)
    assert workflow.jobs("one", *PROFILE) == {}
    assert workflow.jobs(*PROFILE) == workflow.jobs() != {}


def test_all_output_is_deleted_under_the_profile_too(done, tmp_path):
    workflow = done.copy(tmp_path / "w")
    workflow.run("--delete-all-output", *PROFILE)
    assert workflow.targets() == workflow.targets("results") == workflow.token_shards() == set()
    assert (workflow.folder / "data/a.jsonl").exists()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A file that gets the words of each call of sbatch."""
    wrapper = tmp_path / "bin/sbatch"
    wrapper.parent.mkdir()
    log = tmp_path / "calls"
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True).stdout.strip()
    wrapper.write_text(f'#!/bin/sh\necho "$*" | head -n 1 >>{log}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(wrapper.parent), os.environ["PATH"]]))
    return log


def test_a_thousand_small_shards_are_few_calls_of_the_scheduler(done, calls, tmp_path):
    workflow = made_in(tmp_path / "w", build=[{"model": "one"}])
    for number in range(1000):
        write_rows(workflow.folder / f"data/{number}.jsonl", rows(2, seed=number * 2))
    workflow.run("caches", *PROFILE)
    assert len(workflow.token_shards()) > 990
    found = calls.read_text().splitlines()
    assert len(found) <= 60
    for call in found:
        words = shlex.split(call.partition(" --wrap")[0])
        assert int(words[words.index("--mem") + 1]) >= 1000
        assert 1 <= int(words[words.index("-t") + 1]) <= 60


def test_records_that_squeue_forgets_too_soon_are_said(done, tmp_path):
    """sacct has none on this cluster; a run that waited for ever would say nothing."""
    workflow = done.copy(tmp_path / "w")
    write_rows(workflow.folder / "data/a.jsonl", rows(81))
    slow = ("--slurm-init-seconds-before-status-checks", "200")
    output = workflow.run("one", *PROFILE, *slow, fails=True)
    assert "squeue forgets jobs 300 s after their end" in output
    assert "slurm-init-seconds-before-status-checks to 100 at most" in output
    assert "Traceback" not in output


def test_another_cluster_is_left_alone(cluster, tmp_path):
    assert "is another cluster's" in script("start.sh", str(tmp_path / "other"), fails=True)
    script("stop.sh", str(tmp_path / "other"))
    assert "gpu" in script("start.sh")
    assert not (tmp_path / "other").exists()


def test_jobs_are_found_by_sacct_where_it_has_records(cluster, tmp_path):
    script("install-slurm.sh", "--accounting")
    workflow = made_in(tmp_path / "w", build=[{"model": "one"}])
    script("stop.sh")
    try:
        script("start.sh", "--accounting")
        started = time.strftime("%Y-%m-%dT%H:%M:%S")
        workflow.run("caches", *PROFILE)
        assert workflow.jobs("caches") == {}
        command = ["sacct", "--noheader", "-X", "-S", started, "-o", "state%20"]
        states = subprocess.run(command, capture_output=True, text=True).stdout.split()
        assert states == ["COMPLETED", "COMPLETED"]
    finally:
        script("stop.sh")
        script("start.sh")
