"""What killed jobs and workflows left: a workflow's start takes its own, and nothing that lives."""

from __future__ import annotations

import os
import time
from contextlib import chdir
from pathlib import Path

import pytest

from tokencache.base import lease
from tokencache.base.json_files import write_json
from tokencache.base.processes import process_tag
from tokencache.errors import UserError
from tokencache.operate.lib import garbage
from tokencache.plan.plan import (
    PLANS,
    WORKFLOW,
    Plan,
    building_path,
    checkpoints_path,
    progress_path,
)
from tokencache.workflow import leftovers, running

KEY = "0123456789ab" + "0" * 20
RUN = "results/one/qa/32-0123456789ab"
HOUR = 3600


def dead():
    place, number, ticks = process_tag().split("-")
    return f"{place}-{number}-{int(ticks) - 1}"


def aged(folder, seconds):
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def plan(tmp_path):
    with chdir(tmp_path):
        plan = Plan(
            {"id": "20260101-000000-abcdef", "config": {"cache": "cache", "results": "results"},
             "caches": {}, "runs": {RUN: {"training": {"mlflow": None}}},
             "tokenizers": {"cache/tokenizers/" + "1" * 32: {}}, "fetches": {}, "batches": {},
             "token_sets": {}, "tokens": {}}
        )  # fmt: skip
        plan.write()
        yield plan


def finished(run=RUN):
    about = {"key": KEY, "model": "one", "dataset": "qa", "max_length": 32}
    write_json(Path(run, "run.json"), about)


def test_checkpoints_of_a_run_that_is_there_go_when_nobody_works_with_them(plan):
    """Those of a training that was killed between its publication and its end."""
    left = checkpoints_path(RUN)
    (left / "checkpoint-5").mkdir(parents=True)  # half removed: without its record
    (left / "checkpoint-5/model.safetensors").touch()
    aged(left, 2 * HOUR)
    leftovers.take(plan)
    assert left.exists(), "the run is missing, so its training may go on with them"
    finished()
    aged(left, 0)
    leftovers.take(plan)
    assert left.exists(), "somebody is about to remove them"
    aged(left, 2 * HOUR)
    holder = lease.take(building_path(Path(RUN)), {"host": "here", "pid": 1})
    leftovers.take(plan)
    assert left.exists(), "somebody trains"
    holder.release()
    aged(building_path(Path(RUN)), 2 * HOUR)
    leftovers.take(plan)
    assert not left.exists() and not building_path(Path(RUN)).exists()
    assert Path(RUN, "run.json").exists()


def test_of_what_has_nothing_beside_it_nothing_is_read(plan, monkeypatch):
    """A run starts with a look at each of its targets."""
    finished()
    read = []
    monkeypatch.setattr(leftovers, "why_not_beside", read.append)
    leftovers.take(plan)
    assert not read


def test_somebodys_own_folder_that_is_called_as_checkpoints_stays(plan):
    left = checkpoints_path(RUN)
    left.mkdir(parents=True)
    (left / "model.pt").touch()
    Path(RUN).mkdir()
    (Path(RUN) / "model.pt").touch()
    aged(left, 2 * HOUR)
    leftovers.take(plan)
    assert (left / "model.pt").exists()


def test_temporaries_of_dead_processes_go_with_the_next_run(plan):
    names = [
        str(PLANS / ".20200101-000000-abcdef.json.{}.abc.tmp"),
        "results/one/qa/.32-0123456789ab.{}.abc.tmp",
        f"cache/tokenizers/.{'1' * 32}.{{}}.abc.tmp",
        f"cache/tokens/{'1' * 32}/22/.{'2' * 32}.arrow.{{}}.abc.tmp",
        "cache/one/qa/.32-0123456789ab.parts/.000-of-009.{}.abc.tmp",
        f"images/.train-{'3' * 12}.sif.{{}}.abc.tmp",
    ]
    gone = [Path(name.format(dead())) for name in names]
    stays = [Path(name.format(process_tag())) for name in names]
    for folder in [*gone, *stays]:
        folder.mkdir(parents=True)
    leftovers.take(plan)
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in stays)


@pytest.mark.parametrize(
    ("process", "hours", "goes"),
    [("dead", 2, True), ("dead", 0, False), ("living", 24 * 30, False),
     ("elsewhere", 24 * 6, False), ("elsewhere", 24 * 8, True)],
)  # fmt: skip
def test_marks_and_progress_of_a_plan_go_when_its_workflow_is_dead(plan, process, hours, goes):
    other = "20250101-000000-abcdef"
    write_json(PLANS / f"{other}.json", {})
    tag = {"dead": dead(), "living": process_tag(), "elsewhere": "0" * 16 + "-1-2"}[process]
    write_json(progress_path(other, *WORKFLOW), {"process": tag})
    marks = Path(".tokencache/done", other)
    (marks / "sets").mkdir(parents=True)
    own = Path(plan.mark("x"))
    own.parent.mkdir(parents=True)
    own.touch()
    for folder in (marks, progress_path(other, *WORKFLOW).parent):
        aged(folder, hours * HOUR)
    leftovers.take(plan)
    assert marks.exists() == progress_path(other, *WORKFLOW).exists() == (not goes)
    assert own.exists()


def test_plans_of_long_ago_go_and_that_of_a_workflow_that_runs_stays(plan, monkeypatch):
    """However many were made since, for it says every minute that it is needed."""
    monkeypatch.setattr(running, "BEAT_SECONDS", 0.01)
    announcement = running.Announcement(plan)
    for number in range(leftovers.PLANS_KEPT + 5):
        write_json(PLANS / f"20260202-0000{number:02d}-abcdef.json", {})
    write_json(PLANS / "20250101-000000-abcdef.json", {})
    aged(PLANS, 8 * 24 * HOUR)
    announcement.start()
    [said] = Path("cache").glob(".workflow-*.json")
    os.utime(said, (0, 0))
    deadline = time.time() + 10
    while time.time() - min(Path(plan.path).stat().st_mtime, said.stat().st_mtime) > HOUR:
        assert time.time() < deadline
        time.sleep(0.01)
    later = Plan(plan.data | {"id": "20260303-000000-abcdef"})
    later.write()
    leftovers.take(later)
    announcement.end()
    assert Path(plan.path).exists() and not said.exists()
    assert not (PLANS / "20250101-000000-abcdef.json").exists()
    assert len(list(PLANS.glob("*.json"))) == leftovers.PLANS_KEPT + 1


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_a_workflow_is_announced_whatever_others_left(plan, monkeypatch, error):
    """Another user's file in a folder with the sticky bit, or one that goes just now."""
    left = Path("cache", f"{running.PREFIX}{dead()}.json")
    write_json(left, {"caches": [], "keys": []})

    def unlink(path, missing_ok=False):
        raise error

    announcement = running.Announcement(plan)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        announcement.start()
    assert left.exists() and len(running.running("cache")) == 1
    announcement.end()
    assert running.running("cache") == []


def test_gc_deletes_the_announcement_of_a_killed_workflow(tmp_path):
    """The next workflow does so too, unless it has nothing to do: Snakemake calls no hook then."""
    left = tmp_path / f"{running.PREFIX}{dead()}.json"
    write_json(left, {"caches": [], "keys": []})
    assert [thing.paths for thing in garbage.leftovers(tmp_path)] == [(left,)]


def test_a_workflow_that_cannot_be_announced_says_so(plan, monkeypatch, capsys):
    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(running, "write_json", full)
    Path("cache").mkdir()
    announcement = running.Announcement(plan)
    announcement.start()
    announcement.end()
    said = capsys.readouterr().err
    assert "can't see that this one runs" in said and "the disk is full" in said


def test_only_a_workflow_s_record_is_taken_for_one(tmp_path):
    records = [f".workflow-{dead()}.json", ".workflow-host-4026531836-1-1600000000.json"]
    others = [".workflow-notes.json", f".workflow-{dead()}0.json", ".workflow-mine/photo.json"]
    for name in [*records, *others]:
        write_json(tmp_path / name, {} if name == others[1] else {"caches": [], "keys": []})
    aged(tmp_path, 30 * 24 * HOUR)
    assert sorted(path.name for path in running.ended(tmp_path)) == sorted(records)
    assert running.running(tmp_path) == []


@pytest.mark.parametrize(
    ("tag", "days", "over"),
    [("0" * 16 + "-1-2", 0.9, False), ("0" * 16 + "-1-2", 1.1, True),
     ("old.host-4026531836-1-1600000000", 6, False), ("old.host-4026531836-1-1600000000", 8, True)],
)  # fmt: skip
def test_a_workflow_that_cannot_be_asked_counts_while_it_is_heard_of(tmp_path, tag, days, over):
    file = tmp_path / f".workflow-{tag}.json"
    file.touch()
    os.utime(file, (time.time() - days * 86400,) * 2)
    assert running.is_over(file) == over
