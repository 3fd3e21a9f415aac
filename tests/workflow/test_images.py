"""Container images, for real: Apptainer is installed, an image built, and jobs run in it.

Images that were built once are kept in images/ of the checkout, by their names' hashes.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import make_tokenizer
from helpers.workflow import ROOT, TINY, Workflow, rows

from tokencache.errors import UserError
from tokencache.plan.plan import Plan
from tokencache.workflow import images

# In one worker with all that needs images, so that each is built once.
pytestmark = pytest.mark.xdist_group("cluster")
INSTALL = ROOT / "tests/cluster/install-apptainer.sh"
APPTAINER = "/opt/apptainer/usr/bin"
IN_IMAGES = ("--software-deployment-method", "apptainer")


def made_in(folder, **more):
    """A workflow of one cache; its image's base is Debian of this machine's mirrors."""
    make_tokenizer("bos_eos", folder / "tokenizer")
    config = {
        "models": {"one": {"tokenizer": "tokenizer", "architecture": TINY}},
        "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
        "max_length": [32],
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
        "containers": {"base": "debian"},
    }
    return Workflow.new(folder, config | more, {"data/a.jsonl": rows(80)})


@pytest.fixture(scope="module")
def apptainer():
    """Apptainer on PATH, from the script that installs it; root of a Debian 12 can run that."""
    if os.geteuid() != 0:
        pytest.skip("only root can install Apptainer")
    done = subprocess.run([INSTALL], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Apptainer can't be installed: {done.stderr[-500:]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([APPTAINER, os.environ["PATH"]]))
        yield


@pytest.fixture(scope="module")
def done(apptainer, tmp_path_factory):
    """A workflow whose caches were made in an image, which it built first if there was none.

    Its data and its cache folder are links to elsewhere.
    """
    folder = tmp_path_factory.mktemp("containers")
    workflow = made_in(folder / "a check out")
    shutil.move(workflow.folder / "data", folder / "data")
    (folder / "cache").mkdir()
    (ROOT / "images").mkdir(exist_ok=True)
    for name in ("data", "cache"):
        (workflow.folder / name).symlink_to(folder / name)
    (workflow.folder / "images").symlink_to(ROOT / "images")
    workflow.output = workflow.run("caches", *IN_IMAGES)
    return workflow


def image_of(workflow):
    return workflow.folder / images.image_path(workflow.folder, "tokenize", "debian")


def test_jobs_in_an_image_make_the_same_bytes(done, tmp_path):
    assert done.output.count("Activating singularity image images/tokenize-") == 2
    assert len(list(done.folder.glob("cache/one/qa/32-*/train/*.arrow"))) == 1
    local = made_in(tmp_path / "local")
    local.run("caches")
    assert local.files("cache") == done.files("cache")


def test_an_image_alone_makes_nothing_stale(done):
    """Neither one that is gone nor running in images or not."""
    assert done.jobs("caches") == {}
    assert done.jobs("caches", *IN_IMAGES) == {}
    os.utime(image_of(done))
    assert done.jobs("caches", *IN_IMAGES) == {}
    (done.folder / "images").unlink()
    try:
        assert done.jobs("caches", *IN_IMAGES) == {}
        assert done.jobs(*IN_IMAGES) == {"build_image": 1, "train": 1}
        assert done.jobs("images") == {"build_image": 2}
    finally:
        (done.folder / "images").symlink_to(ROOT / "images")


def test_a_damaged_image_is_said_before_jobs_start(done, tmp_path):
    workflow = done.copy(tmp_path / "w")
    (workflow.folder / "images").unlink()
    (workflow.folder / "images").mkdir()
    copy = workflow.folder / "images" / image_of(done).name
    with open(image_of(done), "rb") as whole:
        copy.write_bytes(whole.read(2**20))
    (workflow.folder / "config.yaml").write_text(
        (workflow.folder / "config.yaml").read_text().replace("32", "48")
    )
    said = f"tokencache: images/{copy.name} is damaged ("
    output = workflow.run("caches", *IN_IMAGES, fails=True)
    assert said in output and "delete it, and the next run builds it again" in output
    assert "Traceback" not in output
    assert done.jobs("caches", *IN_IMAGES) == {}, "what is fresh needs no image"
    # Not where it would be seen, but the checksum tells.
    shutil.copy(image_of(done), copy)
    shutil.copy(image_of(done).with_suffix(".json"), copy.parent)
    with open(copy, "r+b") as file:
        file.seek(copy.stat().st_size // 2)
        file.write(bytes(2**16))
    assert said in workflow.run("caches", *IN_IMAGES, fails=True)


def test_an_image_says_what_it_is_and_tests_itself(done):
    image = image_of(done)

    def apptainer(*words):
        found = subprocess.run(["apptainer", *words], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    assert f"tokencache.image: {image.stem}\n" in apptainer("inspect", image)
    assert "the tokencache workflow" in apptainer("run-help", image)
    assert "No broken requirements found" in apptainer("test", "--containall", image)
    version = apptainer(
        "exec", "--containall", "--bind", done.folder, "--env", f"PYTHONPATH={done.folder}/src",
        image, "tokencache", "--version",
    )  # fmt: skip
    assert version.strip()


def test_an_image_keeps_nothing_of_the_machine_s_mirrors(done):
    search = "ls /mnt /opt; ls /etc/apt/sources.list.d; find / -xdev -name 'pip.conf'; env"
    found = subprocess.run(
        ["apptainer", "exec", "--containall", image_of(done), "sh", "-c", search],
        capture_output=True, text=True, env=os.environ | {"PIP_INDEX_URL": "http://mirror/"},
    ).stdout  # fmt: skip
    assert "/usr/local/tokencache/bin" in found
    for word in ("wheels", "pypi", ".list", "pip.conf", "mirror"):
        assert word not in found


@pytest.fixture
def in_job(done, monkeypatch):
    """Runs a shell script as jobs of the workflow run; gives what it wrote to both streams."""
    monkeypatch.chdir(done.folder)
    plan = Plan.read(max(Path(".tokencache/plans").iterdir()))
    monkeypatch.setenv("SECRET", "a password")
    for name, value in images.job_environment(plan, done.folder).items():
        monkeypatch.setenv(name, value)
    for name, value in images.node_environment().items():
        monkeypatch.setenv(name, value)

    def run(script):
        command = ["apptainer", "exec", "--home", done.folder, image_of(done), "sh", "-c", script]
        found = subprocess.run(command, capture_output=True, text=True)
        return found.stdout, found.stderr

    run.cache = plan.cache
    return run


def test_a_job_in_an_image_can_write_to_its_outputs_alone(done, in_job):
    """Not to the sources, the code or its user's home."""
    home = Path.home() / f"x-{os.getpid()}"
    output, errors = in_job(
        f"touch data/a.jsonl src/x; touch {home}; touch logs/here {in_job.cache}/here && echo done"
    )
    Path("logs/here").unlink()
    Path(in_job.cache, "here").unlink()
    assert output == "done\n"
    assert errors.count("Read-only file system") == 3
    assert not home.exists()


def test_a_job_in_an_image_has_no_network_no_home_and_no_environment(done, in_job):
    output, _ = in_job("tail -n +3 /proc/net/dev | cut -d: -f1; echo $HOME; env | grep SECRET")
    assert [line.strip() for line in output.splitlines()] == ["lo", str(done.folder)]
    output, _ = in_job("df --output=source /tmp | tail -1")
    assert output.strip() != "tmpfs"


def test_an_image_s_name_follows_what_it_is_made_from(tmp_path):
    workflow = Workflow.new(tmp_path / "w", {})
    first = images.image_path(workflow.folder, "tokenize", "debian")
    assert images.image_path(workflow.folder, "tokenize", "debian") == first
    assert images.image_path(workflow.folder, "tokenize", "docker://x") != first
    other = images.image_path(workflow.folder, "train", "debian")
    for name in ("envs/tokenize.lock", "containers/tokenize.def"):
        before = images.image_path(workflow.folder, "tokenize", "debian")
        with open(workflow.folder / name, "a") as stream:
            stream.write("# more\n")
        assert images.image_path(workflow.folder, "tokenize", "debian") != before
    assert images.image_path(workflow.folder, "train", "debian") == other


def test_pip_s_settings_come_along_with_what_they_name(tmp_path, monkeypatch):
    certificate, index = tmp_path / "ca.pem", tmp_path / "index/simple"
    certificate.write_text("a certificate")
    index.mkdir(parents=True)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\ncert = {certificate}\nindex-url = http://global/\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", "http://environment/")
    monkeypatch.setenv("PIP_FIND_LINKS", f"file://{index} http://more/")
    settings = tmp_path / "settings"
    settings.mkdir()
    assert str(Path(*index.parts[:2])) in images.pip_settings(settings)
    written = (settings / "pip.conf").read_text()
    (copy,) = re.findall(r"^cert = /mnt/(\d+-ca\.pem)$", written, re.MULTILINE)
    assert (settings / copy).read_text() == "a certificate"
    assert "config-file" not in written
    assert written.index("http://global/") < written.index("http://environment/")
    assert f"find-links = file://{index}\n\thttp://more/" in written


def test_no_apptainer_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="apptainer is not installed"):
        images.build("debian", str(tmp_path / "tokenize-0.sif"), ROOT)
    with pytest.raises(UserError, match="mmdebstrap is not installed"):
        images.make_debian(tmp_path / "debian")


def test_a_build_that_fails_leaves_no_image(apptainer, tmp_path):
    with pytest.raises(UserError, match="apptainer failed with status"):
        images.build(str(tmp_path), str(tmp_path / "images/tokenize-0.sif"), ROOT)
    assert list((tmp_path / "images").iterdir()) == []


def test_an_unknown_base_is_said(tmp_path):
    workflow = made_in(tmp_path / "w", containers={"base": "nowhere"})
    assert "config.yaml:" in (output := workflow.run("-n", fails=True))
    assert "containers.base: there is no folder or image 'nowhere'" in output


def plan_of(files):
    """A plan that has these files as sources, and nothing else."""
    shards = {str(n): {"path": str(file)} for n, file in enumerate(files)}
    parts = ("caches", "runs", "tokenizers", "fetches", "batches", "token_sets")
    config = {"cache": "cache", "results": "results"}
    return Plan({"id": "x", "config": config, "shards": shards} | {name: {} for name in parts})


def binds_of(folder, files, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("APPTAINER_BIND", raising=False)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return images.job_environment(plan_of(files), ROOT)["APPTAINER_BIND"].split(",")


def test_a_source_beside_config_yaml_can_not_be_written_to(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    binds = binds_of(tmp_path, [file], monkeypatch)
    assert f"{file}:{file}:ro" in binds and f"{tmp_path}:{tmp_path}:rw" in binds


def test_sources_in_many_folders_are_shown_by_those_above(tmp_path, monkeypatch):
    files = [tmp_path / "data" / str(n % 40) / str(n) / "a.jsonl" for n in range(600)]
    binds = binds_of(tmp_path, files, monkeypatch)
    assert f"{tmp_path}/data/7:{tmp_path}/data/7:ro" in binds and len(binds) < 60


def test_a_path_that_apptainer_can_not_show_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="with a comma or a colon; rename it"):
        binds_of(tmp_path, [tmp_path / "a,b" / "a.jsonl"], monkeypatch)


def test_a_folder_that_snakemake_can_not_quote_is_said(tmp_path, monkeypatch):
    folder = tmp_path / "anna's"
    folder.mkdir()
    with pytest.raises(UserError, match=r"can't run in a folder with a quote \('\)"):
        binds_of(folder, [], monkeypatch)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HF_HUB_TOKEN", "SLURM_JWT", "TOKENCACHE_SLURM_API_KEY", "HF_TOKEN_PATH"]
)
def test_no_secret_enters_a_container(name, monkeypatch):
    kept = {"HF_HOME": "/a", "TOKENIZERS_PARALLELISM": "1", "CUDA_VISIBLE_DEVICES": "0"}
    for variable, value in (kept | {name: "hunter2"}).items():
        monkeypatch.setenv(variable, value)
    given = images.node_environment()
    assert "hunter2" not in given.values()
    monkeypatch.setenv("HF_ENDPOINT", "https://anna:hunter2@hub.example/a")
    assert images.node_environment()["APPTAINERENV_HF_ENDPOINT"] == "https://***@hub.example/a"
    assert {f"APPTAINERENV_{k}": v for k, v in kept.items()}.items() <= given.items()


def test_code_of_a_model_has_no_open_network(tmp_path, monkeypatch):
    monkeypatch.delenv("APPTAINER_NETWORK", raising=False)
    plan = plan_of([])
    run = {"model": "one", "trust_remote_code": True, "training": {"nodes": 2}}
    plan.runs[str(tmp_path / "run")] = run
    with pytest.raises(UserError, match=r"models.one: .* run beside an open network.*nodes: 1"):
        images.check_networks(plan)
    monkeypatch.setenv("APPTAINER_NETWORK", "host")
    images.check_networks(plan)
    monkeypatch.setenv("APPTAINER_NETWORK", "none")
    for change in ({"trust_remote_code": False}, {"training": {"nodes": 1}}):
        plan.runs[str(tmp_path / "run")] = run | change
        images.check_networks(plan)


def test_a_node_has_its_own_folder_for_temporary_files(tmp_path, monkeypatch):
    own = f"tokencache-{os.getuid()}"
    monkeypatch.setattr(images.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("APPTAINER_WORKDIR", f"/of/the/login/node/{own}")
    assert images.node_environment()["APPTAINER_WORKDIR"] == str(tmp_path / own)
    monkeypatch.setenv("APPTAINER_WORKDIR", "/scratch/anna")
    assert images.node_environment()["APPTAINER_WORKDIR"] == "/scratch/anna"
