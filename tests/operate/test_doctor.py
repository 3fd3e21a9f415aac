"""`tokencache doctor` and `tokencache env`, on this machine and on the files of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_tokenizer
from helpers.workflow import ROOT, Workflow, environment, rows

from tokencache.base import limits
from tokencache.base.limits import GB, Allowed, Told
from tokencache.operate import doctor, env
from tokencache.operate.checks import FAIL, OK, WARN, cluster, disk, models, software, system

CONFIG = {
    "models": {"one": {"tokenizer": "tokenizer"}, "two": {"tokenizer": "tokenizer"}},
    "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32, 64],
}
APPTAINER = Path("/opt/apptainer/usr/bin")


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    make_tokenizer("llama", folder / "tokenizer")
    return Workflow.new(folder, CONFIG, {"data/a.jsonl": rows(80)})


def states(findings):
    return {(finding.what, finding.state) for finding in findings}


# All of it


@pytest.fixture(scope="module")
def report(workflow):
    """What the doctor says of a good folder; what the tests' own settings do is mended."""
    before = set(workflow.folder.iterdir())
    variables = {n: v for n, v in environment().items() if not n.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "tokencache", "doctor", "--json"], cwd=workflow.folder, text=True,
        env=variables | {"PYTHONPATH": str(workflow.folder / "src")}, capture_output=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(workflow.folder.iterdir()) == before, "it leaves nothing behind"
    fails = any(finding["state"] == FAIL for finding in found["findings"])
    assert done.returncode == fails
    return found


def test_a_good_folder(report):
    by_name = {finding["what"]: finding for finding in report["findings"]}
    for name in ("config.yaml", "model one", "model two", "cores", "file system", "index", "space"):
        assert by_name[name]["state"] == OK, by_name[name]
    assert by_name["model one"]["said"].startswith("fast tokenizer; engine gigatoken (same ids")
    assert {"disk", "write speed", "read speed", "python", "snakemake", "torch", "SLURM", "GPU",
            "containers", "attention"} <= by_name.keys()  # fmt: skip
    assert all(f["remedy"] for f in report["findings"] if f["state"] != OK)
    assert all(f["state"] in (OK, WARN, FAIL) for f in report["findings"])


def test_settings_for_this_machine_and_the_classes(report):
    assert list(report["settings"]) == ["this machine", "small", "middle", "large"]
    allowed = limits.here().cores.amount
    assert report["settings"]["this machine"]["DATASET_NUM_PROC"] == allowed


def test_without_a_configuration_and_with_a_bad_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disk, "MEASURED_BYTES", 2**20)
    arguments = doctor.argparse.Namespace(configfile=None, json=False)
    found = list(doctor.findings(arguments, limits.here()))
    assert (found[0].what, found[0].state) == ("config.yaml", WARN)
    assert ("file system", OK) in states(found) and ("index", OK) in states(found)
    assert list(tmp_path.iterdir()) == []
    Path("config.yaml").write_text("models: {}\n")
    assert doctor.run(arguments) == 1
    said = capsys.readouterr().out
    assert "fail config.yaml: config.yaml" in said and "→ mend it" in said
    assert "DATASET_NUM_PROC" in said and "1 fail" in said


def test_a_broken_check_hides_no_other(tmp_path, monkeypatch):
    def broken(profile):
        raise ValueError("what sinfo never said")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disk, "MEASURED_BYTES", 2**20)
    monkeypatch.setattr(cluster, "cluster", broken)
    found = list(doctor.findings(doctor.argparse.Namespace(configfile=None), limits.here()))
    assert ("SLURM", WARN) in states(found) and found[-1].what == "attention"


# Models


def test_models_that_are_slow_missing_or_trained(workflow, tmp_path, monkeypatch):
    monkeypatch.chdir(workflow.folder)
    config = CONFIG | {
        "models": {
            "wordpiece": {"tokenizer": str(make_tokenizer("wordpiece", tmp_path / "wordpiece"))},
            "gone": {"tokenizer": "./nowhere"},
            "trained": {"tokenizer": "own"},
        },
        "tokenizers": {"own": {"dataset": "qa", "algorithm": "bpe", "vocab_size": 400}},
    }
    found = {finding.what: finding for finding in models.check(doctor.config_of(given(config)))}
    assert found["model wordpiece"].state == WARN
    assert "engine tokenizers (gigatoken can't be used" in found["model wordpiece"].said
    assert found["model gone"].state == FAIL and "nowhere" in found["model gone"].said
    assert found["model trained"].state == OK and "trains" in found["model trained"].said


def given(config):
    """The arguments that name a configuration of this text."""
    Path("other.yaml").write_text(yaml.safe_dump(config))
    return doctor.argparse.Namespace(configfile=[Path("other.yaml")])


def test_space_for_all_that_a_configuration_makes(workflow, monkeypatch):
    monkeypatch.chdir(workflow.folder)
    size = Path("data/a.jsonl").stat().st_size
    # Token shards once for both models, and two columns of each of four caches.
    assert doctor.needed(doctor.config_of(given(CONFIG))) == size * (2 + 4 * 2 * 2)
    views = CONFIG | {"format": "view"}
    assert doctor.needed(doctor.config_of(given(views))) == size * 2
    assert disk.space(Path("cache"), 1e18).state == WARN
    assert disk.space(Path("cache"), 1.0).state == OK


# The machine


def test_what_limits_is_named():
    found = Allowed(Told(1, "CPU affinity"), Told(8 * GB, "cgroup"), 2 * GB)
    said = list(system.check(found))
    assert ("memory", WARN) in states(said) and "cgroup" in said[1].said
    if os.cpu_count() > 1:
        assert said[0].state == WARN and "CPU affinity" in said[0].said


def test_classes_are_chosen_as_jobs_choose():
    values = env.classes(limits.here())
    for name, cores, mode in (("small", 4, "balanced"), ("middle", 16, "in memory"),
                              ("large", 32, "in memory")):  # fmt: skip
        assert (values[name]["cores"], values[name]["mode"]) == (cores, mode)
        chosen = limits.choose(limits.CLASSES[name], {})
        assert values[name]["RAYON_NUM_THREADS"] == chosen.rayon.amount == cores
    waiting = [values[name]["DATASET_WRITER_BATCH_SIZE"] for name in ("small", "middle")]
    assert waiting == [16_384, 65_536]


def test_env_can_be_sourced_and_is_taken(workflow):
    text = workflow.tokencache("env", "--class", "middle")
    shell = f"source /dev/stdin <<'END'\n{text}\nEND\n"
    shell += f"{sys.executable} -c 'import os; from tokencache.base import limits; "
    shell += 'print(limits.overrides(os.environ), os.environ["TOKENIZERS_PARALLELISM"])\''
    variables = {n: v for n, v in os.environ.items() if n not in limits.VARIABLES}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=variables)
    assert done.stdout == (
        "{'DATASET_NUM_PROC': 16, 'DATASET_BATCH_SIZE': 65536, 'DATASET_WRITER_BATCH_SIZE': 65536,"
        " 'RAYON_NUM_THREADS': 16} true\n"
    ), done.stderr
    assert text.startswith("# tokencache on middle: 16 cores (class middle)")
    own = workflow.tokencache("env")
    assert f"export DATASET_NUM_PROC={limits.here().cores.amount}\n" in own


# Disks


def test_a_real_folder_is_measured_and_left_empty(tmp_path):
    written, read = disk.measure(tmp_path / "file", 32 * 2**20, 5.0)
    assert written > 1e6 and read > 1e6
    assert (tmp_path / "file").stat().st_size == 32 * 2**20
    folder = tmp_path / "not" / "there"
    found = states(disk.check(folder))
    assert ("file system", OK) in found and ("hard links", OK) in found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_in_memory():
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm")
    found = disk.disk_of(Path("/dev/shm"))
    assert (found.kind, found.system) == ("memory", "tmpfs")
    assert disk.measure(Path("/dev/shm/tokencache-doctor"), 2**20)[1] > 0
    os.unlink("/dev/shm/tokencache-doctor")


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:9 / {} rw shared:1 - nfs4 host:/x rw", "network"),
        ("1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:9 / {} rw - lustre x@tcp:/y rw", "network"),
        ("1 0 0:9 / / rw - nfs host:/x rw\n2 1 8:1 / {} rw - xfs /dev/x rw", "SSD"),
        ("1 0 8:1 / / rw - 9p host rw", "host"),
        ("", "SSD"),
    ],
)  # fmt: skip
def test_the_kind_of_disk(tmp_path, mounts, kind):
    """A folder with a space in its name on a partition of a disk that does not turn."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (tmp_path / "proc/self").mkdir(parents=True)
    place = str(folder).replace(" ", "\\040")
    (tmp_path / "proc/self/mountinfo").write_text(mounts.format(place))
    device = tmp_path / "sys/devices/disk"
    (device / "queue").mkdir(parents=True)
    (device / "queue/rotational").write_text("0\n")
    (device / "disk1").mkdir()
    (device / "disk1/partition").write_text("1\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    number = folder.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    (tmp_path / "sys/dev/block" / name).symlink_to(device / "disk1")
    assert disk.disk_of(folder, tmp_path).kind == kind
    (device / "queue/rotational").write_text("1\n")
    assert disk.disk_of(folder, tmp_path).kind == kind.replace("SSD", "HDD")


# Software


def test_versions_against_the_locks(tmp_path):
    found = {finding.what: finding for finding in software.versions(ROOT / "envs")}
    assert found["tokenizers"].state == found["pyarrow"].state == OK
    assert software.locks(ROOT / "envs").keys() >= {"torch", "snakemake", "gigatoken"}
    (tmp_path / "workflow.lock").write_text("tokenizers==0.0.1\n    # via x\npyarrow==99.1+cpu\n")
    found = {finding.what: finding for finding in software.versions(tmp_path)}
    assert found["tokenizers"].state == WARN and "lock says 0.0.1" in found["tokenizers"].said
    assert "lock says 99.1," in found["pyarrow"].said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TOKENIZERS_PARALLELISM", "false", "one thread"),
        ("OMP_NUM_THREADS", "1", "one thread"),
        ("RAYON_NUM_THREADS", "9", "wait for each other"),
        ("CUDA_LAUNCH_BLOCKING", "1", "slower"),
        ("HF_DATASETS_IN_MEMORY_MAX_SIZE", "1000", "memory"),
    ],
)
def test_variables_that_slow_down(name, value, said):
    [found] = [f for f in software.environment({name: value}, 8) if name in f.said]
    assert found.state == WARN and said in found.said and name in found.remedy


def test_variables_that_do_no_harm():
    harmless = {"TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "8", "NCCL_DEBUG": "WARN",
                "HF_DATASETS_IN_MEMORY_MAX_SIZE": "0"}  # fmt: skip
    assert states(software.environment(harmless, 8)) == {("environment", OK)}
    assert states(software.environment({"OMP_NUM_THREADS": "1"}, 1)) == {("environment", OK)}
    assert ("environment", FAIL) in states(software.environment({"DATASET_NUM_PROC": "2.5"}, 8))


def test_a_library_of_another_place_is_seen(tmp_path, monkeypatch):
    (tmp_path / "gigatoken.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gigatoken", raising=False)
    [found] = [f for f in software.environment({}, 8) if f.state == WARN]
    assert "gigatoken is taken from" in found.said and "PYTHONPATH" in found.remedy


# Containers and SLURM


def test_containers_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    [found] = cluster.containers(tmp_path)
    assert found.state == WARN and "only jobs in images need it" in found.said
    [found] = cluster.cluster(tmp_path)
    assert found.state == OK and "none here" in found.said


def test_a_real_apptainer_starts_a_container(tmp_path, monkeypatch):
    if shutil.which("apptainer") is None and not (APPTAINER / "apptainer").exists():
        pytest.skip("there is no Apptainer; the tests of images install one")
    monkeypatch.setenv("PATH", os.pathsep.join([str(APPTAINER), os.environ["PATH"]]))
    found = list(cluster.containers(tmp_path))
    assert states(found[:2]) == {("containers", OK)}, found
    (tmp_path / "broken.sif").write_bytes(b"no image")
    broken = list(cluster.containers(tmp_path))[1]
    assert broken.state == WARN and "none can be started (broken.sif)" in broken.said


def test_partitions_as_sinfo_says_them():
    found = cluster.partitions(
        "cpu* up 2 4 8000 infinite\ngpu up 1 64+ 515000+ 1-00:00:00\nold down 9 4 8000 1:00:00"
    )
    assert found.said == (
        "partitions (nodes, time limit): cpu* (2 of 4 CPUs, 8 GB, infinite), "
        "gpu (1 of 64+ CPUs, 515 GB, 1-00:00:00)"
    )
    assert cluster.partitions("old down 9 4 8000 1:00:00").state == WARN
