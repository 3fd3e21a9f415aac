"""A run on two nodes of a real SLURM cluster of this machine, without containers."""

import pytest
from test_distributed import (  # noqa: F401 - some are fixtures
    CHECKPOINT,
    configure,
    only,
    packed,
    ranks_of,
    undisturbed,
    workflow,
)

pytestmark = pytest.mark.xdist_group("cluster")

SLURM = (
    "--executor", "slurm", "--jobs", "4", "--slurm-no-account", "--latency-wait", "10",
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1",
    "--seconds-between-status-checks", "1",
    "--default-resources", "slurm_partition=cpu", "mem_mb=1500", "runtime=10", "--",
)  # fmt: skip


def test_two_nodes_of_slurm_of_which_one_fails(workflow, undisturbed, cluster):  # noqa: F811
    configure(workflow, nodes=2, processes_per_node=1)
    process = workflow.start(*SLURM, "all")
    only(workflow.folder, CHECKPOINT)
    ranks = ranks_of(workflow.folder)
    nodes = [ranks[number].environ()["SLURMD_NODENAME"] for number in (0, 1)]
    assert set(nodes) == {"n1", "n2"}
    ranks[1].kill()
    process.communicate(timeout=180)
    assert process.returncode != 0 and not workflow.targets("results")
    log = only(workflow.folder, "logs/train/one/qa/*.log")
    assert f"rank 1 was killed by SIGKILL on {nodes[1]}" in log.read_text()
    assert not ranks_of(workflow.folder)
    workflow.run(*SLURM, "all")
    assert "2 processes on 2 nodes" in log.read_text()
    assert "goes on from the checkpoint at step" in log.read_text()
    assert workflow.results() == undisturbed
