"""How SLURM is asked what became of the jobs, with stand-ins for its commands."""

import pytest
import snakemake_executor_plugin_slurm as plugin

from tokencache.errors import UserError
from tokencache.workflow import slurm


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Makes a cluster without accounting whose squeue remembers jobs for so many seconds."""

    def made(age, records=False):
        commands = {
            "scontrol": f"echo 'MinJobAge               = {age} sec'",
            "sacct": "exit 0" if records else "echo 'accounting storage is disabled' >&2; exit 1",
            "sbatch": "exit 0",
            "squeue": "exit 0",
        }
        for name, line in commands.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return made


@pytest.mark.parametrize(
    ("age", "seconds", "longest"),
    [(300, 10, 100), (300, 100, 100), (60, 10, 20), (30, 10, 10), (9, 3, 3), (3600, 10, 1200),
     (0, 10, None)],
)  # fmt: skip
def test_no_two_looks_are_further_apart_than_squeue_remembers(cluster, age, seconds, longest):
    cluster(age)
    assert slurm.polling(seconds) == slurm.Polling("squeue", longest)


def test_with_records_jobs_may_be_asked_for_at_any_time(cluster):
    cluster(2, records=True)
    assert slurm.polling(100) == slurm.Polling("sacct", None)


@pytest.mark.parametrize(
    ("age", "seconds", "message"),
    [(300, 101, "status-checks to 100 at most"), (60, 40, "status-checks to 20 at most"),
     (10, 10, "MinJobAge of 300")],
)  # fmt: skip
def test_jobs_that_squeue_forgets_too_soon_are_said(cluster, age, seconds, message):
    cluster(age)
    with pytest.raises(UserError, match=f"forgets jobs {age} s after their end.*{message}"):
        slurm.polling(seconds)


def test_the_plugin_never_waits_longer(monkeypatch):
    """It waits ten seconds longer each time, up to three minutes."""
    name = "next_seconds_between_status_checks"
    bound = slurm.at_most(getattr(plugin.Executor, name), 20)
    monkeypatch.setattr(plugin.Executor, name, bound)
    executor = object.__new__(plugin.Executor)
    found = []
    for value in (10, 20, 30, 180, 10):
        executor.next_seconds_between_status_checks = value
        found.append(executor.next_seconds_between_status_checks)
    assert found == [10, 20, 20, 20, 10]
    other = getattr(plugin.Executor, name)
    assert slurm.at_most(other, None) is other
