"""Jobs and workflows that are killed, disks that fill up, files that change under a job."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, kill, rows

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("workflow_faults")

CONFIG = {
    "shard_size": 32768,
    "models": {"one": {"tokenizer": "tokenizer", "architecture": TINY}},
    "datasets": {
        "qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}},
    },
    "max_length": [32],
    "training": {"max_steps": 30, "per_device_train_batch_size": 2, "save_steps": 5},
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    return Workflow.new(folder, CONFIG, {"data.jsonl": rows(8000)})


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory):
    workflow = fresh.copy(tmp_path_factory.mktemp("undisturbed") / "w")
    workflow.run()
    return workflow.results()


@pytest.fixture
def workflow(fresh, tmp_path):
    return fresh.copy(tmp_path / "w")


def wait_for(workflow, pattern, process):
    """Until such a path appears under the workflow's folder."""
    deadline = time.time() + 120
    while not any(workflow.folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline, f"no {pattern}"
        time.sleep(0.005)


MOMENTS = {
    "tokenizer": "cache/tokenizers/.*",
    "first token shard": "cache/tokens/*/*/*.arrow",
    "pack": "cache/one/qa/.*.tmp",
    "training": "results/one/qa/.*.checkpoints/*-5",
    "publication": "results/one/qa/.*.tmp",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_and_run_again(workflow, undisturbed, moment):
    process = workflow.start()
    wait_for(workflow, MOMENTS[moment], process)
    kill(process)
    finished = {p: p.stat().st_mtime_ns for p in workflow.folder.glob("cache/tokens/*/*/*.arrow")}
    workflow.run()
    assert workflow.results() == undisturbed
    assert workflow.jobs() == {}
    # What was finished before was not made again.
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert not list(workflow.folder.rglob("*.tmp"))


def test_killed_at_any_moment_and_run_again(workflow, undisturbed):
    draw = random.Random(os.urandom(8))
    delays = [draw.uniform(0.2, 8) for _ in range(4)]
    for delay in delays:
        process = workflow.start()
        time.sleep(delay)
        kill(process)
    workflow.run()
    assert workflow.results() == undisturbed, delays
    assert not list(workflow.folder.rglob("*.tmp")), delays


def test_one_job_killed_and_run_again(workflow, undisturbed):
    process = workflow.start("caches")
    wait_for(workflow, "cache/tokens/*/*/*.arrow", process)
    subprocess.run(["pkill", "-9", "-g", str(process.pid), "-f", "tokencache tokenize"])
    output = process.communicate()[0]
    assert process.returncode != 0, output
    assert not workflow.targets()
    workflow.run()
    assert workflow.results() == undisturbed


WAIT = '''\
    """Weights or the adapter, tokenizer, metrics.jsonl, plots, run.json and other records."""
    Path("waiting").touch()
    while not Path("go").exists():
        time.sleep(0.01)
'''


@pytest.mark.parametrize("made_before", [True, False])
def test_a_run_whose_cache_is_deleted_meanwhile_ends_well(workflow, made_before):
    workflow.configure(CONFIG | {"training": CONFIG["training"] | {"max_steps": 1}})
    workflow.edit("src/tokencache/training/run.py", WAIT.splitlines(keepends=True)[0], WAIT)
    if made_before:
        workflow.run("caches")
    process = workflow.start()
    wait_for(workflow, "waiting", process)
    shutil.rmtree(workflow.folder / "cache/one")
    (workflow.folder / "go").touch()
    output = process.communicate()[0]
    assert process.returncode == 0 and "Missing files" not in output, output
    assert list(workflow.folder.glob("results/one/qa/32-*/run.json"))
    # The next run makes the cache again, and trains nothing.
    assert workflow.jobs() == {"pack": 1}


def test_two_at_once_leave_one_copy_of_each(workflow, undisturbed):
    first = workflow.start()
    time.sleep(1.5)
    second = workflow.start()
    outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), "\n".join(outputs)
    assert workflow.results() == undisturbed
    workflow.run()
    assert workflow.results() == undisturbed


def test_snakemake_killed_while_a_model_trains(workflow, undisturbed):
    lost = workflow.start()
    wait_for(workflow, MOMENTS["training"], lost)
    children = psutil.Process(lost.pid).children(recursive=True)
    [training] = [child for child in children if child.cmdline()[-1].startswith("results/")]
    training.suspend()
    lost.kill()  # and not what it started
    again = workflow.start()
    log = next((workflow.folder / "logs/train").rglob("*.log"))
    while f"process {training.pid} trains this run already" not in log.read_text():
        assert again.poll() is None, again.communicate()[0]
        time.sleep(0.1)
    training.resume()
    output = again.communicate()[0]
    assert again.returncode == 0 and "another process made it" in output, output
    lost.communicate()
    assert workflow.results() == undisturbed


def test_interrupted_by_ctrl_c(workflow):
    # What a shell starts in the background ignores it, and so would all that starts from there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = workflow.start("caches")
    signal.signal(signal.SIGINT, before)
    wait_for(workflow, MOMENTS["tokenizer"], process)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "Traceback" not in output, output
    workflow.run("caches")


def test_a_source_that_changes_after_the_plan_fails_the_job(workflow):
    process = workflow.start("caches")
    wait_for(workflow, ".tokencache/plans/*.json", process)
    path = workflow.folder / "data.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[-1] = json.dumps({"prompt": "another", "completion": "one"}) + "\n"
    path.write_text("".join(lines))
    output = process.communicate()[0]
    assert process.returncode != 0
    assert "data.jsonl changed while it was read (or after the plan was made)" in output
    assert "Traceback" not in output
    assert not workflow.targets()
    workflow.run("caches")
    assert workflow.jobs("caches") == {}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a full disk needs a small file system, and mount says: {done.stderr}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(workflow, small_disk, undisturbed):
    (workflow.folder / "cache").symlink_to(small_disk)
    output = workflow.run("caches", fails=True)
    assert "the disk is full" in output
    assert "Traceback" not in output, output
    assert not list(small_disk.rglob("*.tmp"))
    # What is there is whole: with a larger disk the work goes on from it.
    kept = {path.name for path in small_disk.rglob("*.arrow")}
    shutil.copytree(small_disk, workflow.folder / "larger")
    (workflow.folder / "cache").unlink()
    (workflow.folder / "larger").rename(workflow.folder / "cache")
    workflow.run("caches")
    assert kept <= workflow.token_shards() | {p.name for p in workflow.folder.rglob("data-*")}
    assert workflow.files("cache") == undisturbed["cache"]
