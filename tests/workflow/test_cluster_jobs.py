"""Workflows on a real SLURM cluster of this machine, in real containers."""

import re
import shlex
import subprocess
import time

import pytest
from helpers.slurm_cluster import PROFILE, ended, job_of, made_in, number_of, script, start
from helpers.workflow import rows, write_rows

# In one worker with all that needs images or the cluster.
pytestmark = pytest.mark.xdist_group("cluster")


@pytest.fixture(scope="module")
def done(cluster, images, tmp_path_factory):
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


def test_a_job_fits_what_slurm_gave_it(done):
    """Its memory and its CPUs, not those of the node."""
    logs = [log.read_text() for log in done.folder.glob("logs/*/**/*.log")]
    jobs = [log for log in logs if re.match(r"tokencache \S+ on n[12]\n", log)]
    assert len(jobs) >= 6
    for log in jobs:
        found = r"^machine: \d cores? \(SLURM_CPUS\w+\), .+ GB \(SLURM_MEM_PER_NODE\)$"
        assert re.search(found, log, re.MULTILINE), log


def test_a_target_and_what_is_stale_are_the_same_on_a_cluster(done, tmp_path):
    """One model's target, and a row that changed: the same jobs, and on the cluster none else."""
    workflow = done.copy(tmp_path / "w")
    write_rows(workflow.folder / "data/a.jsonl", rows(81))
    assert workflow.jobs("one", *PROFILE) == workflow.jobs("one") != workflow.jobs()
    workflow.run("one", *PROFILE)
    assert workflow.jobs("one", *PROFILE) == {}
    assert workflow.jobs(*PROFILE) == workflow.jobs() != {}


def test_a_run_on_two_nodes_has_a_container_on_each(done, tmp_path):
    workflow = done.copy(tmp_path / "w")
    config = workflow.config
    config["training"] |= {"nodes": 2, "max_steps": 3}
    workflow.configure(config)
    output = workflow.run("one", *PROFILE)
    logs = [file.read_text() for file in workflow.folder.glob("logs/train/one/qa/*.log")]
    assert any("2 processes on 2 nodes" in log for log in logs)
    assert re.search(r"^n\[1-2\] +train +one/qa/", output, re.MULTILINE)
    assert len(workflow.targets("results")) == 3


def test_all_output_is_deleted_under_the_profile_too(done, tmp_path):
    workflow = done.copy(tmp_path / "w")
    workflow.run("--delete-all-output", *PROFILE)
    assert workflow.targets() == workflow.targets("results") == workflow.token_shards() == set()
    assert (workflow.folder / "data/a.jsonl").exists()


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
    (tmp_path / "thesis").mkdir()
    script("stop.sh", "--remove", str(tmp_path / "thesis"), fails=True)
    assert (tmp_path / "thesis").exists()
    script("start.sh", "--help", fails=True)
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
        # sacct calls it "CANCELLED by 0", which Snakemake's plugin does not know.
        process = start(workflow, "caches", *PROFILE)
        job = job_of(workflow, "tokenize")
        job.suspend()
        subprocess.run(["scancel", number_of(job)], check=True)
        ended(process, workflow)
        assert workflow.jobs("caches") == {}
        command = ["sacct", "--noheader", "-X", "-S", started, "-o", "state%20"]
        done = subprocess.run(command, capture_output=True, text=True)
        states = sorted(line.strip() for line in done.stdout.splitlines())
        assert states == ["CANCELLED by 0", "COMPLETED", "COMPLETED"]
    finally:
        script("stop.sh")
        script("start.sh")
