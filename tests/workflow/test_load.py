"""`tokencache.load` from several processes at once, of which some die."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_tokenizer
from helpers.workflow import ROOT, environment, rows, write_rows

import tokencache
from tokencache.caches.view import open_cache
from tokencache.errors import UserError

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("load")

CONFIG = {
    "shard_size": 32768,
    "models": {"one": {"tokenizer": "tokenizer"}},
    "datasets": {
        "qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}},
        # What is wrong with other data sets does not matter.
        "missing": {"files": "missing.jsonl"},
    },
    "max_length": [32, 64],
}

RANK = """
import json, sys, tokencache
try:
    cache = tokencache.load("one", "qa", **json.loads(sys.argv[1]))
except tokencache.UserError as error:
    sys.exit(str(error))
print(len(cache["train"]), sum(map(sum, cache["train"]["input_ids"])))
"""

TORCHRUN = {
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "experiment"
    make_tokenizer("bos_eos", folder / "tokenizer")
    write_rows(folder / "data.jsonl", rows(1000))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module")
def built(fresh, tmp_path_factory):
    """A folder with one cache, and what four ranks said that asked for it at once."""
    folder = shutil.copytree(fresh, tmp_path_factory.mktemp("built") / "experiment")
    time.sleep(2.5)  # what is new is not remembered
    ranks = [
        start(folder, build=True, max_length=32, rank=TORCHRUN | {"RANK": str(n)}) for n in range(4)
    ]
    outputs = [rank.communicate(timeout=240) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), outputs
    return folder, outputs


@pytest.fixture
def experiment(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "experiment")


# Even root has to ask, of folders that may not be written to.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def start(folder, rank=None, where=None, before=(), **asked):
    """A process that asks for a cache, in a process group of its own."""
    asked = {"max_length": 64, "arguments": ["--cores", "1"], **asked}
    return subprocess.Popen(
        [*before, sys.executable, "-c", RANK, json.dumps(asked)], cwd=where or folder,
        env=environment() | {"PYTHONPATH": str(ROOT / "src")} | (rank or {}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def said(rank, fails=False):
    """What a process printed: its result, or what went wrong."""
    out, err = rank.communicate(timeout=240)
    assert (rank.returncode != 0) == fails, err
    assert "Traceback" not in err, err
    return err if fails else out


def builds(folder):
    """Who ran snakemake, by the log."""
    logs = [log.read_text() for log in (folder / "logs/load").rglob("*.log")]
    return [int(pid) for log in logs for pid in re.findall(r"^# process (\d+) on", log, re.M)]


def wait_for(folder, pattern, rank):
    deadline = time.time() + 120
    while not (found := [*folder.glob(pattern)]):
        assert rank.poll() is None, rank.communicate()
        assert time.time() < deadline, f"no {pattern}"
        time.sleep(0.01)
    return found


def nothing_left(folder):
    """One cache of the length that was asked for, and nothing beside it."""
    return len(list((folder / "cache/one/qa").iterdir())) == 1


def test_of_four_ranks_one_builds(built):
    folder, outputs = built
    [result] = {out for out, _ in outputs}
    assert result.startswith("949 ")
    assert len(builds(folder)) == 1
    assert nothing_left(folder)
    # One has read the sources, the others found what it wrote down.
    assert sum("hash qa" in err for _, err in outputs) == 1


def test_the_workflow_is_told_nothing_of_ranks(built):
    folder, _ = built
    [log] = (folder / "logs/load").rglob("*.log")
    assert "slurm" not in log.read_text().lower()


def test_a_cache_that_is_there_is_opened_from_anywhere(built, tmp_path, monkeypatch):
    folder, _ = built
    asked = {"model": "one", "dataset": "qa", "max_length": 32}
    below = folder / "some" / "where"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    train = tokencache.load(**asked, split="train")
    assert Path.cwd() == below and len(train) == 949
    monkeypatch.chdir(tmp_path)
    for config in (folder, folder / "config.yaml", str(folder), [folder / "config.yaml"]):
        found = tokencache.load(**asked, config=config)
        assert set(found) == {"train", "validation"}
        assert found["train"].to_list() == train.to_list()
    with pytest.raises(UserError, match=r"no config.yaml in .* or above it"):
        tokencache.load(**asked)


def test_later_files_are_laid_over_earlier_ones(built, tmp_path):
    folder, _ = built
    asked = {"model": "one", "dataset": "qa", "max_length": 32}
    mine = tmp_path / "mine.yaml"
    mine.write_text("max_length: [16]\ncache: other")
    with pytest.raises(UserError, match="for max_length 32, but for max_length 16"):
        tokencache.load(**asked, config=[folder, mine])
    with pytest.raises(UserError, match=f"(?s){folder}/other/one/.*--configfile .*mine.yaml"):
        tokencache.load("one", "qa", 16, config=[folder, mine])
    with pytest.raises(UserError, match=f"{folder}/other/one/qa"):
        tokencache.load("one", "qa", 16, config=[folder / "config.yaml", mine], folder=folder)


def test_a_missing_cache_is_answered_with_the_command_that_makes_it(experiment):
    output = said(start(experiment), fails=True)
    command = re.search(r"^  (cd .* && snakemake .*)$", output, re.M)[1]
    assert "build=True" in output and builds(experiment) == []
    # The data set that is missing is in the way of all, not of this one.
    config = CONFIG | {"datasets": {"qa": CONFIG["datasets"]["qa"]}}
    (experiment / "config.yaml").write_text(yaml.safe_dump(config))
    command = command.replace("snakemake", f"{sys.executable} -m snakemake")
    subprocess.run(command, shell=True, check=True, env=environment(), capture_output=True)
    assert said(start(experiment)).startswith("949 ")


@pytest.mark.parametrize("asked, answer", [
    (("ona", "qa", 32), "unknown model 'ona'; did you mean 'one'"),
    (("one", "qb", 32), "unknown dataset 'qb'; did you mean 'qa'"),
    (("one", "qa", 33), "for max_length 33, but for max_length 32, 64; add it"),
])  # fmt: skip
def test_what_the_configuration_does_not_make_is_named(built, asked, answer):
    with pytest.raises(UserError, match=answer):
        tokencache.load(*asked, config=built[0])


@pytest.mark.parametrize("arguments, answer", [
    (["--cores", "1", "--config", "max_length=[64]"], "--config is not for here.* config=…"),
    (["-Cmax_length=[64]"], "-Cmax_length=.64. is not for here"),
    (["--configfile=other.yaml", "--cores", "1"], "--configfile=other.yaml is not for here"),
    ("--cores 1", r"'--cores 1' is one text; give its words: \['--cores', '1'\]"),
])  # fmt: skip
def test_arguments_that_mean_another_cache_are_refused(built, arguments, answer):
    with pytest.raises(UserError, match=answer):
        tokencache.load("one", "qa", 32, config=built[0], build=True, arguments=arguments)


def test_an_unknown_split_is_named(built):
    with pytest.raises(UserError, match="unknown split 'test'; known: train, validation"):
        tokencache.load("one", "qa", 32, config=built[0], split="test")


def test_a_damaged_cache_is_not_opened(built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "experiment")
    data = next((folder / "cache/one/qa").glob("32-*/train/*.arrow"))
    with open(data, "r+b") as stream:
        stream.truncate(data.stat().st_size - 1)
    with pytest.raises(
        UserError, match=r"arrow has .* bytes instead of .* delete .* and make it again"
    ):
        tokencache.load("one", "qa", 32, config=folder)
    data.unlink()
    with pytest.raises(UserError, match="arrow is missing"):
        tokencache.load("one", "qa", 32, config=folder, build=True)
    # As for training, which is not left to find it out.
    with pytest.raises(UserError, match="arrow is missing"):
        open_cache(data.parents[1])


def test_a_builder_that_is_killed_is_replaced(experiment):
    first = start(experiment, build=True)
    wait_for(experiment, "cache/tokens/*/*/*.arrow", first)
    os.killpg(first.pid, signal.SIGSTOP)
    second = start(experiment, build=True)
    assert f"process {first.pid} on" in second.stderr.readline()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert said(second).startswith("949 ")
    assert builds(experiment) == [first.pid, second.pid]
    assert nothing_left(experiment)


def test_a_builder_that_stands_still_is_replaced_and_does_no_harm_when_it_goes_on(experiment):
    first = start(experiment, build=True)
    wait_for(experiment, "cache/tokens/*/*/*.arrow", first)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        second = start(experiment, build=True, dead_after=3)
        while len(builds(experiment)) < 2 and second.poll() is None:
            time.sleep(0.1)
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert said(second) == said(first)
    assert builds(experiment) == [first.pid, second.pid]
    assert nothing_left(experiment)


LEFT = """
import os, sys
from pathlib import Path
from tokencache.base import lease
for place in sys.argv[1:]:
    lease.take(Path(place), {"host": "here", "pid": os.getpid(), "since": "now", "log": "a log"})
"""


def test_a_lease_of_the_dead_hinders_nobody_who_may_not_remove_it(experiment):
    output = said(start(experiment), fails=True)
    name = re.search(r"the cache .*/(\S+) is not there", output)[1]
    places = [experiment / f"cache/one/qa/.{name}.building", experiment / ".tokencache/planning"]
    subprocess.run(
        [sys.executable, "-c", LEFT, *places], check=True,
        env=environment() | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    leases = [path for place in places for path in (place / "holder").iterdir()]
    closed = [*(path.parent for path in leases), places[0], places[0].parent]
    for folder in closed:
        folder.chmod(0o555)
    try:
        output = said(start(experiment, before=POWERLESS), fails=True)
        assert "is not there: make it with" in output
        output = said(start(experiment, before=POWERLESS, build=True), fails=True)
        assert "you may not write in this folder" in output
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert all(path.exists() for path in leases)
    # Nor does one who could but does not build.
    said(start(experiment), fails=True)
    assert leases[0].exists() and not leases[1].exists()
    assert said(start(experiment, build=True)).startswith("949 ")


def test_waiting_ends_with_who_builds(experiment):
    first = start(experiment, build=True)
    wait_for(experiment, "cache/one/qa/.*.building/holder/*", first)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        output = said(start(experiment, build=True, timeout=2), fails=True)
        assert "was not there after 2 seconds" in output
        assert f"process {first.pid} on " in output and "builds it since 20" in output
        assert str(experiment / "logs/load/one/qa/64-") in output
        output = said(start(experiment), fails=True)
        assert f"process {first.pid} on " in output and "snakemake" in output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_waiting_for_another_ones_look_at_the_sources_ends_too(experiment):
    first = start(experiment)
    wait_for(experiment, ".tokencache/planning/holder/*", first)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        output = said(start(experiment, timeout=3), fails=True)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    waiting, late = output.splitlines()
    assert waiting.startswith("tokencache: waiting for the index of the sources: process ")
    assert "the index of the sources was not there after 3 seconds" in late
    assert f"process {first.pid} on " in waiting and f"process {first.pid} on " in late


def test_a_build_that_fails_fails_for_all(experiment):
    with open(experiment / "data.jsonl", "a") as stream:
        stream.write('{"prompt": [1], "completion": "text"}\n')
    ranks = [start(experiment, build=True) for _ in range(3)]
    outputs = [said(rank, fails=True) for rank in ranks]
    assert len(builds(experiment)) == 1
    for output in outputs:
        assert "could not be built" in output and "data.jsonl" in output
        # The log's end says what was wrong.
        assert "data.jsonl" in output.partition("The end of")[2]
    # Nobody has to wait for a failure of the past, nor is told of it.
    write_rows(experiment / "data.jsonl", rows(1000))
    assert said(start(experiment, build=True)).startswith("949 ")


def test_a_build_that_cannot_begin_is_explained_to_all(experiment):
    (experiment / "logs").touch()
    output = said(start(experiment, build=True), fails=True)
    assert "could not be built: process " in output
    assert f"{experiment}/logs" in output and "Not a directory" in output
    # What those who wait are told.
    [left] = experiment.glob("cache/one/qa/.64-*.building/*.failed")
    assert json.loads(left.read_text())["message"] in output


def test_what_is_imported_is_little():
    script = "import sys, tokencache; print(len(tokencache.__version__), *sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                         env=environment() | {"PYTHONPATH": str(ROOT / "src")}).stdout  # fmt: skip
    assert not {"datasets", "transformers", "pyarrow", "pydantic"} & set(out.split())
