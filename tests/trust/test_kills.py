"""Every kind of job, and snakemake, killed at the n-th call that changes a file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_tokenizer
from helpers.workflow import Workflow, environment, rows

from . import all_or_nothing
from .scenes import PLAN, Job
from .trials import (
    Ended,
    Fault,
    Trials,
    What,
    copied,
    difference,
    grown_old,
    half_published,
    is_hidden,
    tree,
)


def kill(net, trials: Trials, job: Job, few: int, many: int | None = None) -> None:
    """Kill a job at some of its calls; run it again; all must be as if nothing had happened."""
    with copied(job.before) as folder:
        count = trials.run(folder, *job.words, fault=Fault(What.KILL), settings=job.settings).calls
    assert count > 3, job.name
    for at in net.some(range(1, count + 1), few, many):
        what = net.draw.choice([What.KILL, What.TEAR])
        with copied(job.before) as folder:
            ended = trials.run(folder, *job.words, fault=Fault(what, at), settings=job.settings)
            left = half_published(tree(folder), job.made)
            again = run_again(trials, folder, job)
            wrong = difference(later(trials, folder, job), job.made)
        # What a job does on several threads may take another number of calls.
        right = (ended.killed or ended.fine) and not left and again.fine and not wrong
        net.check(
            right,
            f"{job.name} {job.words[-1]}, {what.name} at call {at} of {count}: {ended.status}, "
            f"half published: {left or 'nothing'}; run again: {again.status} {again.said[-1500:]}; "
            f"{wrong}",
        )


def run_again(trials: Trials, folder: Path, job: Job) -> Ended:
    """As snakemake does: a plan is made, which takes away what dead jobs left, and the job runs."""
    planned = trials.run(folder, PLAN, job.config, settings=job.settings)
    if not planned.fine or job.words[0] == PLAN:
        return planned
    return trials.run(folder, *job.words, settings=job.settings)


def later(trials: Trials, folder: Path, job: Job) -> dict[str, bytes | None]:
    """What is there once a later run, or else `gc`, has taken away what nobody needs any more."""
    if difference(tree(folder), job.made):
        grown_old(folder)
        trials.run(folder, PLAN, job.config, settings=job.settings)
    return without_garbage(folder, job.made, lambda other: trials.run(other, "gc", "--delete"))


def without_garbage(
    folder: Path, made: dict[str, bytes | None], collect: Callable[[Path], object]
) -> dict[str, bytes | None]:
    """What is there, without the hidden files and folders that `gc` deletes."""
    found = tree(folder)
    if any(map(is_hidden, found.keys() - made.keys())):
        with copied(folder) as other:
            grown_old(other)
            collect(other)
            left = tree(other)
        found = {name: data for name, data in found.items() if not is_hidden(name) or name in left}
    return found


def test_jobs_killed(net, trials, jobs):
    """Planning, fetching, making tokenizers, tokenizing and packing."""
    for job in jobs:
        if job.name != "train":
            kill(net, trials, job, 1, 60)


def test_trainings_killed(net, trials, jobs):
    [job] = (job for job in jobs if job.name == "train")
    kill(net, trials, job, 1, 50)


def test_deletions_killed(net, trials, scene, jobs):
    """What deletes is killed; nothing is there by half, and the same words delete the rest."""
    last = jobs[-1]
    for words in (
        ("gc", "--delete"),
        ("clear", "--all", "--yes"),
        ("verify", "--quarantine"),
    ):
        with copied(last.after) as folder:
            for shard in sorted(folder.glob("cache/tokens/*/*/*.arrow"))[:2]:
                shard.write_bytes(shard.read_bytes()[:-9])
            (folder / "config.yaml").write_text((folder / "few.yaml").read_text())
            start = tree(folder)
            with copied(folder) as other:
                done = trials.run(other, *words, fault=Fault(What.KILL))
                assert "Traceback" not in done.said and done.calls, (words, done)
                wanted = swept(trials, other)
            for at in net.some(range(1, done.calls + 1), 2, 60):
                with copied(folder) as other:
                    ended = trials.run(other, *words, fault=Fault(What.KILL, at))
                    between = half_published(without_quarantine(tree(other)), start)
                    again = trials.run(other, *words)
                    wrong = difference(swept(trials, other), wanted)
                net.check(
                    (ended.killed or ended.fine) and not between and not wrong
                    and "Traceback" not in again.said,
                    f"{words} killed at call {at} of {done.calls}: half there: {between}; "
                    f"again: {again.status} {again.said[-800:]}; {wrong}",
                )  # fmt: skip


def swept(trials: Trials, folder: Path) -> dict[str, bytes | None]:
    """What is there after `gc --delete`, which takes what a killed process left to nobody."""
    grown_old(folder)
    trials.run(folder, "gc", "--delete")
    trials.run(folder, PLAN)
    return without_tokens(without_quarantine(tree(folder)))


def without_quarantine(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Without folders that have the time in their names."""
    return {name: data for name, data in found.items() if not name.startswith("cache/quarantine")}


def without_tokens(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Without token shards: what keeps them from `gc` is the configuration, not the caches."""
    return {name: data for name, data in found.items() if not name.startswith("cache/tokens/")}


SMALL = {
    "shard_size": 16384,
    "tokenizers": {"words": {"dataset": "qa", "vocab_size": 300}},
    "models": {"given": {"tokenizer": "tokenizer"}, "own": {"tokenizer": "words"}},
    "datasets": {
        "qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}},
        "hub": {"hub": "saved", "document": {"text": "{prompt}"}, "validation": None},
    },
    "max_length": [32],
    "build": [{"model": "given", "dataset": "hub"}, {"model": "own", "dataset": "qa"}],
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workflow") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    data = {"data.jsonl": rows(120), "saved/train.jsonl": rows(40, seed=500)}
    return Workflow.new(folder, SMALL, data)


def snakemake(workflow: Workflow, variables: dict[str, str]) -> tuple[int, str]:
    """Its exit status and output, once all that it started has ended, too."""
    done = subprocess.run(
        workflow.command("caches"), cwd=workflow.folder, env=environment() | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def collect(folder: Path) -> str:
    return Workflow(folder).tokencache("gc", "--delete")


@all_or_nothing
def test_snakemake_killed(net, fresh, library, tmp_path):
    """Snakemake and all its jobs die at once, or one process of them alone."""
    counter = tmp_path / "calls"

    def armed(what: What, at: int) -> dict[str, str]:
        counter.unlink(missing_ok=True)
        return Fault(what, at).variables(counter, library)

    undisturbed = fresh.copy(tmp_path / "undisturbed")
    status, said = snakemake(undisturbed, armed(What.KILL, 0))
    assert status == 0, said
    wanted = tree(undisturbed.folder)
    count = int.from_bytes(counter.read_bytes(), "little")
    for at in net.some(range(1, count + 1), 0, 50):
        what = net.draw.choice([What.KILL, What.TEAR, What.KILL_SELF])
        with copied(fresh.folder) as folder:
            workflow = Workflow(folder)
            first = snakemake(workflow, armed(what, at))
            left = half_published(tree(folder), wanted)
            again = snakemake(workflow, {})
            # Where a killed workflow had made all, the next has nothing to do and calls no hook.
            found = without_garbage(folder, wanted, collect)
            wrong = difference(found, wanted)
        net.check(
            not left and again[0] == 0 and not wrong and "Traceback" not in again[1],
            f"snakemake, {what.name} at call {at} of {count}: half published: {left or 'nothing'}; "
            f"first: {first[0]}; run again: {again[0]} {again[1][-1500:]}; {wrong}",
        )
