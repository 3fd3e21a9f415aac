"""What jobs say of themselves in files, and what `tokencache status` makes of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time

import pytest
from conftest import make_tokenizer
from helpers.workflow import Workflow, rows

from tokencache.base import job_status
from tokencache.base.job_status import ProgressFile, Watch, read, reporting
from tokencache.base.processes import process_tag
from tokencache.base.progress import Progress
from tokencache.operate.lib.overview import Overview
from tokencache.plan.plan import Plan

CONFIG = {
    "models": {"one": {"tokenizer": "tokenizer"}},
    "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32],
}


def job(path):
    return path, "pack", "cache/one/qa/32-0", "n1"


def until(found, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_a_job_says_how_far_it_is_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(job_status, "WRITE_SECONDS", 0.01)
    path = tmp_path / "plan" / "a.json"
    with reporting(*job(path)), Progress(10, "rows", "pack", io.StringIO()) as progress:
        [said] = read(path.parent)
        assert said["stage"] == "pack" and said["node"] == "n1"
        until(lambda: read(path.parent)[0]["progress"])
        progress._told -= 10
        progress.update(4, tokens=8)
        said = until(lambda: next((f for f in read(path.parent) if f["progress"]["done"]), None))
        assert said["progress"]["total"] == 10 and said["progress"]["unit"] == "rows"
        assert said["progress"]["rates"].keys() == {"rows", "tokens"}
        assert said["state"] == "running"
    assert list(path.parent.iterdir()) == []
    Progress(1, "rows", "after", io.StringIO()).close()
    assert list(path.parent.iterdir()) == []


def test_a_job_that_failed_says_why(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError), reporting(*job(path)):
        raise ValueError("rows are gone")
    [said] = Watch().look(tmp_path)
    assert (said["state"], said["why"]) == ("failed", "rows are gone")
    with reporting(*job(path)):  # tried again
        assert Watch().look(tmp_path)[0]["state"] == "running"
    assert read(tmp_path) == []


def test_what_cannot_be_written_fails_no_job(tmp_path, monkeypatch):
    monkeypatch.setattr(job_status, "WRITE_SECONDS", 0.01)
    (tmp_path / "file").touch()
    with reporting(*job(tmp_path / "file" / "plan" / "a.json")):
        time.sleep(0.05)
    with reporting(*job(tmp_path / "plan" / "a.json")):
        for file in tmp_path.glob("plan/*"):
            file.unlink(missing_ok=True)
        (tmp_path / "plan").rename(tmp_path / "gone")  # the plan is through
        time.sleep(0.05)
    assert not (tmp_path / "plan").exists()


def test_a_killed_process_of_this_machine_is_seen_at_once(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from tokencache.base.job_status import "
        "ProgressFile as F; F(Path(sys.argv[1]), 'pack', 'a', 'n1').start(); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")])
    [said] = Watch().look(tmp_path)
    assert said["state"] == "stalled" and "its process is gone" in said["why"]


def written(path, **changed):
    about = {
        "stage": "pack", "target": "a", "node": "n1", "state": "running", "error": None,
        "process": process_tag().replace(process_tag().split("-")[0], "elsewhere", 1),
        "started": time.time(), "updated": time.time(), "still": 0.0, "progress": None,
    }  # fmt: skip
    path.write_text(json.dumps(about | changed))


def test_a_job_elsewhere_is_told_by_its_last_word(tmp_path):
    file, watch = tmp_path / "a.json", Watch()
    written(file)
    assert watch.look(tmp_path)[0]["state"] == "running"
    written(file, updated=time.time() - 300)
    [said] = Watch().look(tmp_path)
    assert said["state"] == "stalled" and said["why"].startswith("no word for 5:00")
    # A clock five minutes behind: what changes while one watches is no old file.
    assert watch.look(tmp_path)[0]["state"] == "running"
    state = {"label": "pack", "done": 1, "total": 2, "unit": "rows", "rates": {}, "elapsed": 9.0,
             "eta": None}  # fmt: skip
    written(file, still=400.0, progress=state)
    assert watch.look(tmp_path)[0]["why"] == "no further for 6:40"
    file.write_text("{")  # never seen half-written, but one may be damaged
    assert watch.look(tmp_path) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workflow's folder after a run, and what was seen meanwhile: looks, and one printed."""
    folder = tmp_path_factory.mktemp("status")
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, CONFIG, {"data/a.jsonl": rows(300)})
    running = workflow.start("caches")
    looks, printed = [], ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        overview = None
        while running.poll() is None:
            time.sleep(0.05)
            if overview is None and list(folder.glob(".tokencache/plans/*.json")):
                overview = Overview(Plan.newest())
            if overview is not None:
                looks.append(overview.look())
                if looks[-1]["jobs"] and not printed:
                    printed = workflow.tokencache("status")
    said = running.communicate()[0]
    assert running.returncode == 0, said
    return workflow, looks, printed


def test_status_while_a_workflow_runs(run):
    _, looks, printed = run
    assert "snakemake runs on" in printed and "materialize-tokenizer" in printed
    running = [(job["stage"], job["state"]) for look in looks for job in look["jobs"]]
    assert {stage for stage, _ in running} >= {"materialize-tokenizer", "tokenize", "pack"}
    assert {state for _, state in running} == {"running"}
    assert any(look["workflow"]["state"] == "running" for look in looks)
    one = next(look for look in looks if look["jobs"] and look["jobs"][0]["stage"] == "tokenize")
    assert one["stages"]["tokenize"]["running"] == 1 and one["stages"]["pack"]["to_do"] == 1


def test_status_after_a_workflow(run):
    workflow, _, _ = run
    found = json.loads(workflow.tokencache("status", "--json"))
    assert found["workflow"]["state"] == "ended" and found["jobs"] == []
    assert {name: counts["done"] for name, counts in found["stages"].items()} == {
        "materialize-tokenizer": 1, "tokenize": 1, "pack": 1,
    }  # fmt: skip
    assert found["token_shards"] == {"there": 1, "total": 1}
    assert not list(workflow.folder.glob(".tokencache/progress/*/*"))
    printed = workflow.tokencache("status", "--watch")  # no terminal: once
    assert "no snakemake runs it; 1 of 1 token shards are there" in printed


def test_status_sees_a_job_that_was_killed(run):
    workflow, _, _ = run
    plan = max(workflow.folder.glob(".tokencache/plans/*.json"))
    [cache] = workflow.folder.glob("cache/one/qa/32-*")
    folder = workflow.folder / ".tokencache/progress" / plan.stem
    folder.mkdir(parents=True)
    target = str(cache.relative_to(workflow.folder))
    aside = cache.rename(cache.with_name("aside"))
    written(folder / "pack-0.json", target=target, updated=time.time() - 90)
    try:
        printed = workflow.tokencache("status")
        assert "pack one/qa/32-" in printed and "stalled: no word for 1:3" in printed
    finally:
        aside.rename(cache)
    assert "stalled: " not in workflow.tokencache("status")  # another one made it


def test_status_without_a_plan(tmp_path, run):
    workflow, _, _ = run
    said = workflow.tokencache("status", "--plan", "nowhere.json", fails=True)
    assert said.startswith("tokencache: there is no plan nowhere.json")


def test_a_file_is_of_one_process(tmp_path):
    """What was never started ends in peace."""
    ProgressFile(*job(tmp_path / "a.json")).end()
    assert list(tmp_path.iterdir()) == []
