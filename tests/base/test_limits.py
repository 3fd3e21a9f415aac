"""Settings that fit the machine: what a job may use, what is chosen, and that no byte shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import make_tokenizer
from helpers.shards import entry, tokens
from helpers.workflow import Workflow, rows

from tokencache.base import limits
from tokencache.base.limits import BALANCED, FROM_DISK, GB, IN_MEMORY, MIB, Allowed, Told
from tokencache.caches import dataset
from tokencache.config.references import Reference
from tokencache.config.schema import Dataset
from tokencache.documents.recipe import recipe_of
from tokencache.errors import UserError
from tokencache.sources import read
from tokencache.sources.source import Piece, Source
from tokencache.tokenizer import given as tokenizers
from tokencache.tokens import write

SOURCES = Path(__file__).parents[2] / "src"


# What is allowed


def allowed(root, files=None, cores=64, total=256 * GB, available=200 * GB, **environ):
    """On a machine of 64 cores with these files in proc and sys."""
    for name, text in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = limits.allowed(environ, Told(cores, "the machine"), total, available, root)
    return found.cores, found.memory, found.free


def groups(version, folder, limit=None, used=0, cached=0, cpu=None):
    """The files of one control group."""
    if version == 1:
        memory, cores = (f"sys/fs/cgroup/{name}/{folder}" for name in ("memory", "cpu"))
        made = {
            f"{memory}/memory.limit_in_bytes": limit or 2**63 - 4096,
            f"{memory}/memory.usage_in_bytes": used,
            f"{memory}/memory.stat": f"active_file 1\ntotal_inactive_file {cached}\n"
            "total_active_file 0",
            f"{cores}/cpu.cfs_quota_us": int(cpu * 100_000) if cpu else -1,
            f"{cores}/cpu.cfs_period_us": 100_000,
        }
    else:
        memory = f"sys/fs/cgroup/{folder}"
        made = {
            f"{memory}/memory.max": limit or "max",
            f"{memory}/memory.current": used,
            f"{memory}/memory.stat": f"anon 5\ninactive_file {cached}\nactive_file 0",
            f"{memory}/cpu.max": f"{int(cpu * 100_000) if cpu else 'max'} 100000",
        }
    return {name: f"{text}\n" for name, text in made.items()}


OWN = {
    1: "5:cpu,cpuacct:/job/step\n4:memory:/job/step\n1:name=systemd:/\n0::/\n",
    2: "0::/job/step\n",
}


def test_without_limits_it_is_the_machine(tmp_path):
    wanted = (Told(64, "the machine"), Told(256 * GB, "the machine"), 200 * GB)
    assert allowed(tmp_path) == wanted
    for version in (1, 2):
        own = {"proc/self/cgroup": OWN[version]}
        assert allowed(tmp_path / str(version), own | groups(version, "job/step")) == wanted


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_of_all_control_groups_above_counts(tmp_path, version):
    files = {"proc/self/cgroup": OWN[version]}
    files |= groups(version, "job/step", limit=8 * GB, used=GB, cpu=6)
    files |= groups(version, "job", limit=4 * GB, used=3 * GB, cached=2 * GB, cpu=2.5)
    files |= groups(version, "", limit=100 * GB, cpu=32)
    found = allowed(tmp_path, files)
    # What is kept of files is free, and a part of a core lets a third thread run.
    assert found == (Told(3, "cgroup"), Told(4 * GB, "cgroup"), 3 * GB)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["/docker/0a1b", "/../elsewhere"])
def test_in_a_container_the_path_may_be_that_of_its_host(tmp_path, version, path):
    own = {"proc/self/cgroup": OWN[version].replace("/job/step", path)}
    found = allowed(tmp_path, own | groups(version, "", limit=2 * GB, cpu=0.5))
    assert found == (Told(1, "cgroup"), Told(2 * GB, "cgroup"), 2 * GB)


def test_no_more_is_free_than_the_machine_has(tmp_path):
    files = {"proc/self/cgroup": OWN[2]} | groups(2, "job/step", limit=90 * GB)
    assert allowed(tmp_path, files, available=GB)[2] == GB
    full = groups(2, "job/step", limit=GB, used=2 * GB)
    assert allowed(tmp_path, files | full)[2] == 0


@pytest.mark.parametrize(
    ("environ", "cores", "memory"),
    [
        ({"SLURM_CPUS_ON_NODE": "8"}, (8, "SLURM_CPUS_ON_NODE"), None),
        (
            {"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"},
            (2, "SLURM_CPUS_PER_TASK"),
            None,
        ),
        ({"SLURM_CPUS_ON_NODE": "128"}, (64, "the machine"), None),
        ({"SLURM_CPUS_ON_NODE": "some"}, (64, "the machine"), None),
        (
            {"SLURM_MEM_PER_NODE": "4096"},
            (64, "the machine"),
            (4096 * MIB, "SLURM_MEM_PER_NODE"),
        ),
        ({"SLURM_MEM_PER_NODE": "0"}, (64, "the machine"), None),  # all that the node has
        (
            {"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "4"},
            (4, "SLURM_CPUS_ON_NODE"),
            (4000 * MIB, "SLURM_MEM_PER_CPU"),
        ),
        # Under this name the workflow hands on what the plugin takes away.
        (
            {"TOKENCACHE_SLURM_MEM_PER_NODE": "2000"},
            (64, "the machine"),
            (2000 * MIB, "SLURM_MEM_PER_NODE"),
        ),
    ],
)
def test_what_slurm_allows(tmp_path, environ, cores, memory):
    found = allowed(tmp_path, **environ)
    assert found[0] == Told(*cores)
    assert found[1] == (Told(*memory) if memory else Told(256 * GB, "the machine"))
    assert found[2] == (memory[0] if memory else 200 * GB)


LOOK = """
from tokencache.base import limits
found = limits.here()
print(found.cores.amount, found.cores.by, found.memory.amount, found.memory.by, sep="|")
"""


def look(before):
    """What a process finds that first did something."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(SOURCES)}, preexec_fn=before,
    )  # fmt: skip
    return done.stdout.strip().split("|")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system knows no affinity")
def test_a_process_that_is_kept_to_one_core():
    own = os.sched_getaffinity(0)
    cores, by, *_ = look(lambda: os.sched_setaffinity(0, [min(own)]))
    assert int(cores) == 1
    assert len(own) == 1 or by == "CPU affinity"


def test_a_process_in_a_real_control_group():
    limit = 700 * MIB
    folders = list(limits._groups(Path("/"), "memory"))
    group = next((f for f in folders if f.is_dir()), Path("/none")) / f"tokencache-{os.getpid()}"
    names = ("memory.max", "memory.limit_in_bytes")
    try:
        group.mkdir()
        file = next(group / name for name in names if (group / name).exists())
        file.write_text(str(limit))
    except (OSError, StopIteration):
        group.exists() and group.rmdir()
        pytest.skip("this machine lets nobody make a control group with a memory limit")
    try:
        found = look(lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    finally:
        group.rmdir()
    assert found[2:] == [str(limit), "cgroup"]


# What is chosen

ALLOWED = Allowed(Told(8, "cgroup"), Told(64 * GB, "cgroup"), 30 * GB)


def chosen(threads=0, free=30 * GB, **given):
    return limits.choose(replace(ALLOWED, free=free), given, threads)


NAMES = {"N": limits.PROCESSES, "R": limits.RAYON, "O": limits.OPENMP}


@pytest.mark.parametrize(
    ("threads", "given", "rayon", "openmp"),
    [
        (0, {}, (8, "cgroup"), (8, "cgroup")),
        (2, {}, (2, "--threads"), (2, "--threads")),
        (99, {}, (8, "cgroup"), (8, "cgroup")),
        (2, {"N": 5}, (5, "N"), (5, "N")),
        (2, {"N": 5, "R": 3}, (3, "R"), (5, "N")),
        (2, {"R": 3, "O": 1}, (3, "R"), (1, "O")),
        (0, {"N": 20}, (20, "N"), (20, "N")),
        # Snakemake sets it to --threads.
        (2, {"O": 2}, (2, "--threads"), (2, "--threads")),
        (2, {"O": 2, "N": 5}, (5, "N"), (5, "N")),
        (99, {"O": 99}, (8, "cgroup"), (8, "cgroup")),
    ],
)
def test_threads(threads, given, rayon, openmp):
    found = chosen(threads, **{NAMES[name]: number for name, number in given.items()})
    for told, (amount, by) in ((found.rayon, rayon), (found.openmp, openmp)):
        assert told == Told(amount, NAMES.get(by, by))


def test_the_libraries_are_told(monkeypatch):
    for name in (limits.RAYON, limits.OPENMP, "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")  # which this test's end restores
    chosen(**{limits.PROCESSES: 5, limits.OPENMP: 2}).apply()
    assert [os.environ[n] for n in (limits.RAYON, limits.OPENMP, "MKL_NUM_THREADS")] == [
        "5", "2", "2",
    ]  # fmt: skip


def test_the_mode_follows_from_what_is_free():
    modes = {size: chosen(free=size * GB).mode for size in (0, 19, 20, 49, 50, 999)}
    assert list(modes.values()) == [FROM_DISK] * 2 + [BALANCED] * 2 + [IN_MEMORY] * 2
    assert chosen(free=60 * GB).whole_files(30 * GB)
    assert not chosen(free=60 * GB).whole_files(31 * GB)
    assert not chosen(free=49 * GB).whole_files(1)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "1e3"])
@pytest.mark.parametrize("name", limits.VARIABLES)
def test_what_is_no_positive_number_is_refused(name, text):
    with pytest.raises(UserError, match=f"{name}: '{text}' in the environment is no positive"):
        limits.overrides({name: text})


def test_what_is_empty_says_nothing():
    assert limits.overrides({name: " " for name in limits.VARIABLES}) == {}
    assert limits.overrides({limits.ROWS: " 12 "}) == {limits.ROWS: 12}


def test_a_log_says_what_was_chosen_and_why():
    found = chosen(2)
    where = "machine: 8 cores (cgroup), 30.0 GB free of 64.0 GB (cgroup)\n"
    assert found.lines("tokenize") == (
        f"{where}settings: 2 threads (--threads); balanced (20 to 50 GB free); batches of 16 MiB "
        "or 65,536 documents, 2 made ahead; up to 64 MiB wait to be written"
    )
    assert found.lines("train") == f"{where}settings: 2 threads (--threads)"
    given = {limits.ROWS: 10, limits.WRITER_ROWS: 2000, limits.RAYON: 9}
    found = chosen(1, free=GB, **given)
    assert found.lines("tokenize").endswith(
        "settings: Rayon 9 threads (RAYON_NUM_THREADS), OpenMP 1 thread (--threads), more than "
        "the cores; from disk (less than 20 GB free); batches of 8 MiB or 10 documents "
        "(DATASET_BATCH_SIZE), 2 made ahead; up to 2,000 rows wait to be written "
        "(DATASET_WRITER_BATCH_SIZE)"
    )
    assert "one batch waits to be written" in chosen(free=GB).lines("pack")
    said = chosen(free=60 * GB).lines("pack")
    assert "; in memory (50 GB free or more); up to 256 MiB wait to be written; up to 30" in said
    assert said.endswith("up to 30.0 GB of token shards are read beforehand")
    assert "1 process (" in found.lines("fetch")
    assert "5 processes (DATASET_NUM_PROC)" in chosen(**{limits.PROCESSES: 5}).lines("fetch")


def test_the_number_of_processes_is_for_stages_that_read_a_data_set(monkeypatch):
    monkeypatch.setattr(limits, "_chosen", None)
    for name in limits.VARIABLES:
        monkeypatch.setenv(name, "3")
    for stage in ("pack", "train"):
        assert limits.settle(stage, 1).workers.by != limits.PROCESSES
    assert limits.settle("tokenize", 1).workers == Told(3, limits.PROCESSES)


# That no byte shows it


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Each recipe's piece of a source, and the tokenizer."""
    folder = tmp_path_factory.mktemp("work")
    source = make_tokenizer("bos_eos", folder / "source")
    reference = Reference(path=str(source))
    tokenizers.materialize(reference, folder / "t", tokenizers.describe(reference).key)
    special = tokenizers.facts(folder / "t").special_tokens
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(300)))
    piece = Piece(Source(str(path), "jsonl", None, "line"), 0, path.stat().st_size)
    wanted = (
        Dataset(files=["-"], document={"text": "{prompt} {completion}"}),
        Dataset(
            files=["-"], loss="completion",
            document={"prompt": "prompt", "completion": "completion"},
        ),
        Dataset(files=["-"], document={"messages": "messages"}, loss="assistant"),
    )  # fmt: skip
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    made = [recipe_of(w, template if w.document.messages else None, special) for w in wanted]
    return piece, made, folder / "t"


def everything(work, out):
    """All bytes of the token shards of all recipes and of a cache of each kind, by path."""
    piece, recipes, tokenizer = work
    digest = read.digest(piece)
    shards = [(piece, digest, r, out / f"{n}.arrow", str(n)) for n, r in enumerate(recipes)]
    write.tokenize_batch(shards, tokenizer, "tokenize")
    for shard, packing in product(shards, ("none", "best_fit")):
        name = f"{shard[-1]}-{packing}"
        wanted = entry(64, "split", packing, {"fraction": 0.1, "seed": 1})
        dataset.build(wanted, tokens({"train": [str(shard[3])]}), out / name)
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_no_mode_and_no_variable_shows_in_a_byte(work, tmp_path, monkeypatch):
    # Record batches of a shard and a cache, of which several wait to be written.
    monkeypatch.setattr(write, "TOKENS_IN_A_BATCH", 2000)
    monkeypatch.setattr(dataset, "ROWS_IN_A_BATCH", 7)
    small = {"batch_bytes": 2000, "waiting_bytes": 9000}
    given = {limits.ROWS: 17, limits.WRITER_ROWS: 11, limits.PROCESSES: 3}
    cases = [(mode, {}) for mode in (IN_MEMORY, BALANCED, FROM_DISK)]
    cases += [(replace(IN_MEMORY, **small), {}), (replace(FROM_DISK, **small), given)]
    found = []
    for number, (mode, variables) in enumerate(cases):
        made = replace(limits.choose(ALLOWED, variables), mode=mode)
        monkeypatch.setattr(limits, "_chosen", made)
        found.append(everything(work, tmp_path / str(number)))
    assert len(found[0]) > 30
    assert all(other == found[0] for other in found[1:])


def test_the_workflow_takes_the_variables(tmp_path, monkeypatch):
    make_tokenizer("bos_eos", tmp_path / "w/tokenizer")
    config = {
        "models": {"one": {"tokenizer": "tokenizer"}},
        "datasets": {"qa": {"files": "a.jsonl", "document": {"text": "prompt"}}},
        "max_length": 32,
    }
    workflow = Workflow.new(tmp_path / "w", config, {"a.jsonl": rows(300)})
    monkeypatch.setattr(
        "helpers.workflow.environment", lambda: os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    for name in (limits.RAYON, limits.OPENMP):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setenv(limits.ROWS, "lots")
    said = workflow.run(fails=True)
    assert "tokencache: DATASET_BATCH_SIZE: 'lots' in the environment is no positive" in said
    assert "Traceback" not in said and not (workflow.folder / "cache").exists()

    for name, number in zip(limits.VARIABLES, (2, 50, 70, 1, 3), strict=True):
        monkeypatch.setenv(name, str(number))
    workflow.run("--cores", "2")
    made = workflow.files("cache")
    logs = {log.parts[-2]: log.read_text() for log in workflow.folder.glob("logs/tokenize/*.log")}
    [first, second, third, *_] = logs["tokenize"].splitlines()
    assert first.startswith("tokencache ") and second.startswith("machine: ")
    assert third.startswith("settings: Rayon 1 thread (RAYON_NUM_THREADS), OpenMP 3 threads (OMP")
    assert "or 50 documents (DATASET_BATCH_SIZE)" in third
    assert "70 rows wait to be written (DATASET_WRITER_BATCH_SIZE)" in third

    for name in limits.VARIABLES:
        monkeypatch.delenv(name)
    (workflow.folder / "cache").rename(workflow.folder / "before")
    workflow.run()
    assert workflow.files("cache") == made
    [log] = workflow.folder.glob("logs/pack/one/qa/*.log")
    assert "settings: 1 thread (--threads); " in log.read_text()
    plan = max(workflow.folder.glob(".tokencache/plans/*.json"), key=os.path.getmtime)
    monkeypatch.setenv(limits.PROCESSES, "0")
    words = ("tokenize", "--plan", str(plan), "qa-0001")
    said = workflow.tokencache(*words, fails=True)
    assert said.startswith("tokencache: DATASET_NUM_PROC: '0' in the environment is no positive")
