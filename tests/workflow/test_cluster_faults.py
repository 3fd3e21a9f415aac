"""What goes wrong on a cluster, done to real jobs of a real SLURM: every run ends with its bytes.

Jobs are held with SIGSTOP to be there when something happens to them.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from helpers.slurm_cluster import (
    PATIENCE,
    PROFILE,
    ended,
    job_of,
    made_in,
    number_of,
    said,
    script,
    start,
    until,
)  # fmt: skip

pytestmark = pytest.mark.xdist_group("cluster")

# Images are not what most of these are about.
PLAIN = (*PROFILE, "--software-deployment-method", "env-modules")
RUNNING = Path("/opt/tokencache-cluster/run")


@pytest.fixture(scope="module")
def fresh(cluster, tmp_path_factory):
    training = {"max_steps": 10, "per_device_train_batch_size": 2, "save_steps": 5}
    return made_in(tmp_path_factory.mktemp("fresh") / "w", training=training)


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory):
    workflow = fresh.copy(tmp_path_factory.mktemp("undisturbed") / "w")
    workflow.run()
    return workflow


@pytest.fixture
def workflow(fresh, tmp_path):
    return fresh.copy(tmp_path / "w")


@pytest.fixture
def repaired(cluster):
    """The cluster, with all its daemons and nodes again at the end."""
    yield
    # A node that could not start a job is drained; of others SLURM says that this is invalid.
    for node in ("n1", "n2"):
        resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(resume, capture_output=True)
    script("start.sh")


def daemon(name):
    return psutil.Process(int((RUNNING / f"{name}.pid").read_text()))


def daemon_of_node(process):
    """The slurmd of the node that a job's process runs on."""
    return daemon(f"slurmd-{process.environ()['SLURMD_NODENAME']}")


def kill(process):
    process.kill()
    process.wait(PATIENCE)


def kill_job(number):
    """All processes of a job with -9, and those of SLURM that watch over it."""
    for process in psutil.process_iter():
        try:
            steps = " ".join(process.cmdline()).startswith(f"slurmstepd: [{number}.")
            if steps or process.environ().get("SLURM_JOB_ID") == number:
                process.kill()
        except psutil.Error:
            continue


def checkpoint_of(workflow):
    until(
        lambda: list(workflow.folder.glob("results/*/qa/.*.checkpoints/checkpoint-*")),
        workflow,
        "a checkpoint",
    )


def has_bytes_of(undisturbed, workflow, models, roots=("cache", "results")):
    """All of these models, to the byte, and nothing that is not whole."""
    for root in roots:
        expected, made = undisturbed.files(root), workflow.files(root)
        assert made == {name: expected.get(name) for name in made}
        targets = {target for target in undisturbed.targets(root) if target[:3] in models}
        assert targets <= workflow.targets(root)


def calls_of_sbatch(log, rule):
    """(MB, minutes) of each job of a rule that was submitted."""
    found = []
    for call in log.read_text().splitlines():
        words = shlex.split(call.partition(" --wrap")[0])
        if words[words.index("--comment") + 1].startswith(f"rule_{rule}_"):
            found.append((int(words[words.index("--mem") + 1]), int(words[words.index("-t") + 1])))
    return found


def test_cancelled_over_time_and_over_memory(workflow, undisturbed, calls):
    """Each gets another attempt, and more of both."""
    run = next(target for target in undisturbed.targets("results") if target.startswith("two/"))
    process = start(
        workflow, "caches", f"results/{run}", *PLAIN,
        "--set-resources", "tokenize:runtime=attempt", "train:mem_mb=200*5**(attempt-1)",
    )  # fmt: skip
    # Of two that are there at once, one hangs, and the other is cancelled.
    hung = job_of(workflow, "tokenize")
    hung.suspend()
    other = job_of(workflow, "tokenize", but=[hung])
    cancelled = number_of(other)
    subprocess.run(["scancel", cancelled], check=True)
    late = number_of(hung)
    output = ended(process, workflow)
    assert re.search(rf"'{cancelled}' failed, SLURM status is: 'CANCELLED'", output)
    assert re.search(rf"'{late}' failed, SLURM status is: 'TIMEOUT'", output)
    logs = workflow.folder.glob(".snakemake/slurm_logs/rule_train/*/*.log")
    assert "exceeded memory limit" in next(logs).read_text()
    assert [minutes for _, minutes in calls_of_sbatch(calls, "tokenize")] == [1, 1, 2, 2]
    assert [megabytes for megabytes, _ in calls_of_sbatch(calls, "train")][:2] == [200, 1000]
    has_bytes_of(undisturbed, workflow, ["one", "two"], roots=["cache"])
    has_bytes_of(undisturbed, workflow, ["two"])


def test_a_training_is_told_to_stop(workflow, calls):
    """As SLURM does before a time limit or a preemption: the next attempt goes on from there."""
    training = {"max_steps": 400, "per_device_train_batch_size": 2, "logging_steps": 5}
    workflow.configure(workflow.config | {"training": training})
    process = start(workflow, "one", *PLAIN)
    live = "results/one/qa/.*.checkpoints/metrics.jsonl"
    until(
        lambda: any('"step": 10,' in file.read_text() for file in workflow.folder.glob(live)),
        workflow, "a step",
    )  # fmt: skip
    stopped = number_of(job_of(workflow, "train"))
    subprocess.run(["scancel", "--signal=TERM", stopped], check=True)
    output = ended(process, workflow)
    assert f"'{stopped}' failed" in output
    [log] = (workflow.folder / "logs/train/one").rglob("*.log")
    assert re.search(r"goes on from the checkpoint at step [1-9]", log.read_text())
    asked = [line for line in calls.read_text().splitlines() if "rule_train" in line]
    assert len(asked) == 2 and all("--signal=TERM@" in line for line in asked)


def test_snakemake_killed_while_its_jobs_run(workflow, undisturbed):
    """Two runs after it meet its jobs: one makes their targets too, one waits for a training."""
    process = start(workflow, "one", *PLAIN)
    lost = job_of(workflow, "tokenize")
    lost.suspend()
    process.kill()
    process.wait()

    process = start(workflow, "one", *PLAIN)
    checkpoint_of(workflow)
    training = job_of(workflow, "train")
    training.suspend()
    process.kill()
    process.wait()
    lost.resume()

    process = start(workflow, "one", *PLAIN)
    job_of(workflow, "train", but=[training])
    logs = workflow.folder / "logs/train/one"  # Snakemake removes the old one, for a moment
    log = until(lambda: next(logs.rglob("*.log"), None), workflow, "the log")
    until(lambda: f"process {training.pid} trains" in log.read_text(), workflow, "the wait")
    training.resume()
    ended(process, workflow)
    assert not training.is_running()
    assert "another process made it" in log.read_text()
    has_bytes_of(undisturbed, workflow, ["one"])
    until(lambda: not lost.is_running(), workflow, "the end of the job that was lost")
    has_bytes_of(undisturbed, workflow, ["one"])
    assert workflow.jobs("one", *PLAIN) == {}


@pytest.fixture
def small_disk(workflow):
    """The cache folder as a file system of 8 MB."""
    disk = workflow.folder / "cache"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a full disk needs a small file system, and mount says: {done.stderr}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_the_disk_of_the_caches_is_full_for_a_while(workflow, undisturbed, small_disk):
    process = start(workflow, "one", *PLAIN)
    job = job_of(workflow, "tokenize")
    job.suspend()
    with open(small_disk / "filler", "wb") as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(2**16))
            filler.flush()
    job.resume()
    log = workflow.folder / "logs/tokenize/qa-0001.log"
    until(lambda: log.exists() and "the disk is full" in log.read_text(), workflow, "no space")
    (small_disk / "filler").unlink()
    ended(process, workflow)
    has_bytes_of(undisturbed, workflow, ["one"])


def test_a_node_dies_and_comes_back(workflow, undisturbed, calls, repaired):
    process = start(workflow, "one", *PLAIN)
    job = job_of(workflow, "tokenize")
    job.suspend()
    number, node = number_of(job), daemon_of_node(job)
    kill(node)
    kill_job(number)
    until(lambda: "due to a node failure" in said(workflow), workflow, "the end of the job")
    script("start.sh")
    assert number in re.search(r"SLURM-job '(\d+)' failed due to a node", said(workflow))[1]

    # One whose slurmd alone dies and comes back with its job.
    checkpoint_of(workflow)
    job = job_of(workflow, "train")
    job.suspend()
    kill(daemon_of_node(job))
    script("start.sh")
    job.resume()
    ended(process, workflow)
    has_bytes_of(undisturbed, workflow, ["one"])
    assert len(calls_of_sbatch(calls, "tokenize")) == 2
    assert len(calls_of_sbatch(calls, "train")) == 1


def test_the_scheduler_is_restarted_and_killed(workflow, undisturbed, calls, repaired):
    process = start(workflow, "one", *PLAIN)
    job = job_of(workflow, "tokenize")
    job.suspend()
    scheduler = daemon("slurmctld")
    scheduler.terminate()
    scheduler.wait(PATIENCE)
    script("start.sh")
    kill(daemon("slurmctld"))
    # Longer than the ten seconds in which snakemake's question waits for an answer.
    time.sleep(15)
    script("start.sh")
    job.resume()
    ended(process, workflow)
    has_bytes_of(undisturbed, workflow, ["one"])
    assert [len(calls_of_sbatch(calls, rule)) for rule in ("tokenize", "pack", "train")] == [1] * 3


def test_an_image_is_deleted(workflow, undisturbed, images):
    """Jobs that run in it go on; later ones fail, and the same command again builds it first."""
    built, own = (workflow.folder / "images").resolve(), workflow.folder / "images"
    own.unlink()
    shutil.copytree(built, own, copy_function=os.link)
    cache = next(f"cache/{name}" for name in undisturbed.targets() if name.startswith("one/"))
    process = start(workflow, cache, *PROFILE, "--retries", "0")
    job = job_of(workflow, "tokenize")
    job.suspend()
    image = next(own.glob("tokenize-*.sif"))
    image.unlink()
    job.resume()
    assert process.wait(PATIENCE) == 1, said(workflow)
    assert "(Rule: tokenize)" in said(workflow)
    assert f"images/{image.name} is gone" in said(workflow)
    assert workflow.jobs(cache, *PROFILE).keys() >= {"build_image", "pack"}
    # Put back, as building it takes minutes and is tested elsewhere.
    os.link(built / image.name, image)
    workflow.run(cache, *PROFILE)
    has_bytes_of(undisturbed, workflow, ["one"], roots=["cache"])
