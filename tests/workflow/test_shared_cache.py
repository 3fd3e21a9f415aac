"""One cache folder for several workflows, and for several users of a group."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import make_tokenizer
from helpers.workflow import Workflow, environment, kill, rows

from tokencache.base import publish
from tokencache.config.load import load
from tokencache.operate.lib.all_output import AllOutput

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("shared_cache")

GROUP = 23000
ANNA, BEN = 23001, 23002  # numbers do: nobody needs an account

CONFIG = {
    "cache": "../cache",
    "shard_size": 32768,
    "models": {"one": {"tokenizer": "tokenizer"}},
    "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32],
}


# $1 is a folder that others may not enter, $2 a place to put it, $3 what they need of it.
ENTER = """set -e
mount --rbind "$1" "$2"
mount -t tmpfs -o mode=755 none "$1"
for name in $3; do mkdir -p "$1/$name"; mount --rbind "$2/$name" "$1/$name"; done
shift 3
exec "$@"
"""


def where_python_is_open(place):
    """Words before a command with which other users reach this Python, which may lie in a home."""
    needed = [Path(sys.executable).resolve(), Path(sys.prefix), Path(sys.base_prefix)]
    above = {folder for path in needed for folder in path.parents}
    closed = [folder for folder in above if not folder.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return []
    first = min(closed, key=lambda folder: len(folder.parts))
    below = {path.relative_to(first).parts[0] for path in needed if first in path.parents}
    place.mkdir(exist_ok=True)
    return ["unshare", "--mount", "sh", "-c", ENTER, "-", first, place, " ".join(below)]


class Users(Workflow):
    """A workflow that one user runs under a umask, in a folder that only that user writes to."""

    user, umask, before = 0, 0o022, ()

    def command(self, *words):
        return self.run_as([sys.executable, "-m", "snakemake", "--cores", "1", *words])

    def run_as(self, words):
        own = str(self.user)
        setpriv = ["setpriv", "--reuid", own, "--regid", own, "--groups", str(GROUP)]
        known = ["env", f"HOME={self.folder}", f"LOGNAME=user-{own}"]
        umask = ["sh", "-c", f'umask {self.umask:o}; exec "$@"', "-"]
        return [*self.before, *setpriv, *umask, *known, *words]

    def asks(self, script, *words):
        """A script of this user's, run by Python in the background."""
        return subprocess.Popen(
            self.run_as([sys.executable, "-c", script, *words]), cwd=self.folder,
            env=environment() | {"PYTHONPATH": str(self.folder / "src")}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    return Workflow.new(folder, CONFIG, {"data.jsonl": rows(1500)})


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory):
    alone = fresh.copy(tmp_path_factory.mktemp("undisturbed") / "w")
    alone.run("caches")
    return alone.files("../cache")


@pytest.fixture
def base():
    """A folder that all users reach, which they do not where pytest keeps its own."""
    folder = Path(tempfile.mkdtemp(prefix="tokencache-shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def anna_and_ben(fresh, base):
    """Two users, a folder each, and a cache folder of their group. Ben closes all that is his."""
    if os.geteuid():
        pytest.skip("needs root, to act as two users")
    (base / "cache").mkdir()
    os.chown(base / "cache", -1, GROUP)
    (base / "cache").chmod(0o2775)
    found = []
    for name, user, umask in (("anna", ANNA, 0o022), ("ben", BEN, 0o077)):
        workflow = Users(fresh.copy(base / name).folder)
        workflow.user, workflow.umask = user, umask
        workflow.before = where_python_is_open(base / "closed")
        for path in [workflow.folder, *workflow.folder.rglob("*")]:
            os.chown(path, user, user)
        found.append(workflow)
    try:
        subprocess.run(
            found[1].run_as([sys.executable, "-c", "import snakemake"]),
            env=environment(), check=True, capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        pytest.skip(f"other users can't run {sys.executable}: {error.stderr}")
    return found


def is_open_to_the_group(cache):
    for path in [cache, *cache.rglob("*")]:
        about = path.stat()
        wanted = stat.S_IRWXG | stat.S_ISGID if path.is_dir() else stat.S_IRGRP
        assert about.st_gid == GROUP, path
        assert about.st_mode & wanted == wanted, (path, stat.filemode(about.st_mode))
    return True


def nothing_is_left(folder):
    assert not [p for p in folder.rglob(".*") if p.name.endswith((".tmp", ".building"))]
    return True


def test_two_workflows_at_once_leave_one_copy(fresh, undisturbed, base):
    workflows = [fresh.copy(base / name) for name in ("one", "two")]
    processes = [workflow.start("caches") for workflow in workflows]
    for process in processes:
        output = process.communicate()[0]
        assert process.returncode == 0, output
    assert workflows[0].files("../cache") == undisturbed
    assert nothing_is_left(base)
    assert all(workflow.jobs("caches") == {} for workflow in workflows)


WAIT = """    splits, counts = split_rows(cache, tokens)
    import time
    Path("joining").touch()
    while [*out.parent.glob(".*.parts/*-of-*")]:
        time.sleep(0.01)
"""


def test_two_workflows_that_join_the_same_parts_both_succeed(fresh, base):
    """The second is about to join them when the first has made the cache and removed them."""
    first, second = (fresh.copy(base / name) for name in ("one", "two"))
    for workflow in (first, second):
        workflow.in_parts((workflow.folder / "data.jsonl").stat().st_size // 3)
    first.edit("rules/pack.smk", '"tokencache pack ', '"false && tokencache pack ')
    first.run("caches", fails=True)
    first.edit("rules/pack.smk", '"false && tokencache pack ', '"tokencache pack ')
    place = "    splits, counts = split_rows(cache, tokens)\n"
    second.edit("src/tokencache/caches/dataset.py", place, WAIT)
    waiting = second.start("caches")
    try:
        deadline = time.time() + 120
        while not (second.folder / "joining").exists():
            assert waiting.poll() is None and time.time() < deadline
            time.sleep(0.05)
        first.run("caches")
        output = waiting.communicate(timeout=120)[0]
    finally:
        if waiting.poll() is None:
            kill(waiting)
    assert waiting.returncode == 0, output
    assert first.jobs("caches") == second.jobs("caches") == {}
    assert not list(base.glob("cache/one/qa/.*"))


def test_two_users_at_once_leave_one_copy_that_both_can_use(anna_and_ben, undisturbed, base):
    processes = [workflow.start("caches") for workflow in anna_and_ben]
    for process in processes:
        output = process.communicate()[0]
        assert process.returncode == 0, output
    anna, ben = anna_and_ben
    assert anna.files("../cache") == undisturbed
    assert is_open_to_the_group(base / "cache") and nothing_is_left(base)
    assert anna.jobs("caches") == ben.jobs("caches") == {}
    # Each can go on from what the other made.
    for workflow, length in ((anna, 16), (ben, 24)):
        workflow.configure(CONFIG | {"max_length": [length]})
        assert workflow.rerun("caches") == {"pack": 1}
    assert is_open_to_the_group(base / "cache")


def test_one_user_makes_and_another_deletes(anna_and_ben, base):
    anna, ben = anna_and_ben
    ben.run("caches")
    anna.configure(CONFIG | {"max_length": [16]})
    anna.run("caches")
    [bens, annas] = sorted(anna.targets("../cache"), key=lambda t: "/16-" in t)
    anna.run("--delete-all-output", "--config", "clean=everything")
    assert anna.targets("../cache") == {bens}
    assert annas not in anna.targets("../cache")
    assert ben.jobs("caches") == {}
    # What it takes to delete another one's is a command of its own.
    subprocess.run(anna.run_as(["rm", "-r", str(base / "cache" / bens)]), check=True)
    ben.rerun("caches")
    assert "what other configurations made stays" not in ben.run("--delete-all-output")
    assert anna.targets("../cache") == set()


def test_one_user_makes_the_parts_and_another_the_cache(anna_and_ben, base, undisturbed):
    anna, ben = anna_and_ben
    anna.umask = 0o002  # the group may even write her files, and so link them
    size = (anna.folder / "data.jsonl").stat().st_size // 3
    for workflow in anna_and_ben:
        workflow.in_parts(size)
    anna.edit("rules/pack.smk", '"tokencache pack ', '"false && tokencache pack ')
    anna.run("caches", fails=True)
    assert ben.jobs("caches") == {"pack": 1}
    output = ben.run("caches")
    assert "Traceback" not in output, output
    [cache] = base.glob("cache/one/qa/32-*")
    assert not list(cache.parent.glob(".32-*")), "what anna's jobs left"
    assert {path.stat().st_uid for path in cache.rglob("*")} == {BEN}
    assert is_open_to_the_group(base / "cache")


COME_AND_GO = """
import os, sys
print(flush=True)
while True:
    for parent in sys.argv[1:]:
        os.makedirs(f"{parent}/.{'1' * 32}.x.tmp/{'1' * 32}/train")
        os.removedirs(f"{parent}/.{'1' * 32}.x.tmp/{'1' * 32}/train")
"""


def test_what_somebody_writes_meanwhile_is_not_this_users(tmp_path):
    places = [tmp_path / "cache/tokens" / ("2" * 32), tmp_path / "cache/one/qa"]
    for place in places:
        place.mkdir(parents=True)
        (place / "stays").touch()
    folders = {"cache": str(tmp_path / "cache"), "results": str(tmp_path / "results")}
    config = load(CONFIG | folders)
    writer = subprocess.Popen(
        [sys.executable, "-c", COME_AND_GO, *places], stdout=subprocess.PIPE, text=True
    )
    try:
        writer.stdout.readline()
        for _ in range(1000):
            AllOutput(config, None).asked(("caches", "runs"), None)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def test_what_is_closed_to_a_user_is_not_this_users(anna_and_ben, base):
    anna, ben = anna_and_ben
    anna.run("caches")
    [cache] = base.glob("cache/one/qa/32-*")
    for mode, path in ((0o700, "one/bens"), (0o744, "bens/data"), (0o700, "tokens/bens")):
        made = base / "cache" / path
        subprocess.run(ben.run_as(["mkdir", "-p", made / "folder"]), check=True)
        made.chmod(mode)
    anna.run("--delete-all-output")
    assert not cache.exists()
    assert sorted(p.name for p in base.glob("cache/**/folder")) == ["folder"] * 3


LOAD = """
import tokencache
print(len(tokencache.load("one", "qa", 32, build=True, arguments=["--cores", "1"])["train"]))
"""


def test_two_users_that_load_at_once_build_once(anna_and_ben, base):
    processes = [workflow.asks(LOAD) for workflow in anna_and_ben]
    outputs = [process.communicate()[0] for process in processes]
    assert [output.splitlines()[-1] for output in outputs] == ["1415", "1415"], outputs
    logs = [*base.glob("*/logs/load/one/qa/*.log")]
    assert len(logs) == 1, outputs
    assert is_open_to_the_group(base / "cache") and nothing_is_left(base)


def test_a_user_that_builds_and_is_killed_is_replaced_by_another(anna_and_ben, base, undisturbed):
    anna, ben = anna_and_ben
    first = ben.asks(LOAD)
    deadline = time.time() + 120
    while not any(base.glob("cache/tokens/*/*/*.arrow")):
        assert first.poll() is None and time.time() < deadline, first.communicate()
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGSTOP)
    second = anna.asks(LOAD)
    while "builds it since" not in second.stdout.readline():
        assert second.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    output = second.communicate()[0]
    assert output.splitlines()[-1] == "1415", output
    assert anna.files("../cache") == undisturbed
    assert is_open_to_the_group(base / "cache") and nothing_is_left(base / "cache")


def test_a_user_that_may_not_write_is_told_so(anna_and_ben, base):
    anna, ben = anna_and_ben
    (base / "cache").chmod(0o755)
    output = ben.run("caches", fails=True)
    assert "cache: you may not write in this folder" in output
    assert "Traceback" not in output, output
    (base / "cache").chmod(0o2775)
    anna.run("caches")
    # What is there can be loaded from another one's workflow, in which nothing can be written.
    script = LOAD.replace("build=True", f"build=True, config={str(anna.folder)!r}")
    output = ben.asks(script).communicate()[0]
    assert output.splitlines()[-1] == "1415", output
    output = ben.asks(script.replace("32", "16")).communicate()[0]
    assert "no cache of 'one' and 'qa' is made for max_length 16" in output
    anna.configure(CONFIG | {"max_length": [16]})
    output = ben.asks(script.replace("32", "16")).communicate()[0]
    assert f"you may not write in {anna.folder}, where snakemake would be run" in output


# What killed jobs leave


def test_what_was_left_of_a_target_that_is_not_there_is_kept_for_a_week(tmp_path):
    for days in (8, 6):
        left = left_elsewhere(tmp_path / "target", days * 24)
        publish.remove_dead(tmp_path / "target")
        assert left.exists() == (days == 6)


def left_elsewhere(final, hours):
    """What a job of another machine, or in another container, left so long ago."""
    left = final.parent / f".{final.name}.elsewhere-4026531836-7-1600000000.abc{hours}.tmp"
    (left / final.name).mkdir(parents=True)
    (left / final.name / "file").write_text("half")
    then = time.time() - hours * 3600
    for path in (left / final.name / "file", left / final.name, left):
        os.utime(path, (then, then))
    return left


def test_what_is_left_of_targets_that_are_there_goes_with_the_next_run(fresh, base):
    workflow = fresh.copy(base / "one")
    workflow.in_parts((workflow.folder / "data.jsonl").stat().st_size // 3)
    workflow.run("caches")
    [cache] = base.glob("cache/one/qa/32-*")
    old, new = left_elsewhere(cache, 2), left_elsewhere(cache, 0)
    parts = cache.parent / f".{cache.name}.parts"
    (parts / "000-of-003").mkdir(parents=True)  # as when pack is killed before it removes them
    marks = workflow.folder / ".tokencache/done/20200101-000000-abcdef"
    marks.mkdir(parents=True)
    workflow.configure(CONFIG | {"max_length": [32, 16]})
    workflow.run("caches")
    assert not old.exists() and new.exists(), "one may still be written to"
    assert parts.exists() and not marks.exists()
    for path in (parts / "000-of-003", parts):
        os.utime(path, (time.time() - 7200,) * 2)
    workflow.configure(CONFIG | {"max_length": [32, 24]})
    workflow.run("caches")
    assert not parts.exists()
