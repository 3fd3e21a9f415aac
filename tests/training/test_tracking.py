"""The records of a run in MLflow, and what is said where that is not to be had."""

import errno
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.training import SOURCES, make_run, records, refused

from tokencache.base import credentials
from tokencache.base.json_files import write_json
from tokencache.base.publish import published
from tokencache.cli import main
from tokencache.config.load import load
from tokencache.errors import UserError
from tokencache.plan.plan import PLANS, Plan

pytestmark = pytest.mark.usefixtures("one_thread")

PACKAGES = ("mlflow-skinny", "sqlalchemy", "alembic")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    """A folder with MLflow, which the locked environment does not hold."""
    folder = tmp_path_factory.mktemp("mlflow")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip can't install MLflow here: {done.stderr[-300:]}")
    return folder


TRAIN = """
import json, sys
from pathlib import Path
from tokencache.training import checkpoints
from tokencache.training import run as train
run, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
if sys.argv[3] == "stop":
    rotate = checkpoints.rotate
    def rotate_and_stop(folder, *how):
        rotate(folder, *how)
        raise InterruptedError
    checkpoints.rotate = rotate_and_stop
train.train(run, out, out.with_name("checkpoints"))
"""

READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
[experiment] = [e for e in client.search_experiments() if e.name == sys.argv[2]]
[run] = client.search_runs([experiment.experiment_id])
history = client.get_metric_history(run.info.run_id, "loss")
print(json.dumps([run.info.run_name, run.info.status, run.data.params,
                  [[m.step, m.value] for m in history]]))
"""


def python(script, *words, beside):
    # After the locked packages, which the training needs as they are.
    script = f"import sys; sys.path.append({str(beside)!r})\n{script}"
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script, *map(str, words)], env=environment,
                          capture_output=True, text=True)  # fmt: skip


def test_a_run_that_was_stopped_is_one_run_of_the_same_records(cache, tokenizer, mlflow, tmp_path):
    run = make_run(cache, tokenizer, mlflow={"experiment": "tried"}, max_steps=12, save_steps=5)
    write_json(tmp_path / "run.json", run)
    out = tmp_path / "results" / "small" / "texts" / "32-aaa"
    words = (tmp_path / "run.json", out)
    assert "InterruptedError" in python(TRAIN, *words, "stop", beside=mlflow).stderr
    done = python(TRAIN, *words, "go", beside=mlflow)
    assert done.returncode == 0 and f"experiment tried, run {run['key']}" in done.stderr
    database = f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
    found = python(READ, database, "tried", beside=mlflow)
    name, status, params, losses = json.loads(found.stdout)
    assert (name, status, params["learning_rate"]) == (run["key"], "FINISHED", "0.01")
    told = [[r["step"], r["loss"]] for r in records(out) if "loss" in r]
    assert [list(pair) for pair in dict.fromkeys(map(tuple, losses))] == told


URIS = {
    "https://anna:p%40ss%2Fword@mlflow.example/a": "https://***@mlflow.example/a",
    "https://anna@mlflow.example": "https://***@mlflow.example",
    "postgresql://u:a@b/c@host/db?password=hunter2": "postgresql://***@host/db?***",
    "https://hf_tok123@mlflow.example#s3cret": "https://***@mlflow.example#***",
    "https://hf_tok123:@mlflow.example?a=b#k=s3cret": "https://***@mlflow.example?***",
    "sqlite:///a.db": "sqlite:///a.db",
    "https://mlflow.example": "https://mlflow.example",
    "databricks": "databricks",
}


@pytest.mark.parametrize("uri", URIS)
def test_an_address_without_its_credentials(uri):
    assert credentials.hidden(uri) == URIS[uri]
    said = (
        f'API request to {uri}/x failed: for user "p@ss/word" (p%40ss%2Fword), a@b/c, hunter2, '
        "hf_tok123 denied, s3cret"
    )
    found = credentials.hidden_in(said, uri)
    for secret in ("p@ss/word", "p%40ss", "a@b/c", "hunter2", "hf_tok123", "s3cret"):
        if secret in credentials.unquote(uri) or secret in uri:
            assert secret not in found


def test_credentials_are_in_nothing_that_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = {"mlflow": {"tracking_uri": "https://anna:hunter2@mlflow.example"}}
    raw = {
        "models": {"one": {"tokenizer": "t", "training": training}},
        "datasets": {"a": {"files": "a.jsonl"}},
        "max_length": [8],
        "training": training,
    }
    config = load(raw)
    assert "hunter2" not in json.dumps(config.shown())
    assert config.shown()["models"]["one"]["training"]["mlflow"]["tracking_uri"].endswith("example")
    own = config.training_of("one").model_dump()  # what jobs get
    assert own["mlflow"]["tracking_uri"] == training["mlflow"]["tracking_uri"]
    parts = ("caches", "tokenizers", "fetches", "batches", "token_sets")
    data = {"id": "x", "config": config.shown(), "runs": {}} | {name: {} for name in parts}
    for umask, folder_mode, others in (
        (0o022, 0o755, 0o044),
        (0o002, 0o775, 0o064),
        (0o077, 0o700, 0),
        (0o077, 0o2775, 0o040),  # a group shares the folder
    ):
        before = os.umask(umask)
        try:
            PLANS.mkdir(parents=True, exist_ok=True)
            PLANS.chmod(folder_mode)
            for tracked, mode in (({"r": {"training": own}}, 0), ({}, others)):
                plan = Plan(data | {"runs": tracked})
                plan.write()
                assert os.stat(plan.path).st_mode & 0o077 == mode, oct(folder_mode)
        finally:
            os.umask(before)


def test_the_folder_of_plans_is_as_others_though_the_first_plan_is_private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.umask(umask := os.umask(0o077))
    with published(PLANS / "a.json", private=True) as temporary:
        temporary.touch()
    assert PLANS.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_plan_of_another_user_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PLANS.mkdir(parents=True)
    (PLANS / "20260101-000000-abcdef.json").touch(mode=0o600)

    def closed(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", closed)
    assert main(["status"]) == 1
    said = capsys.readouterr().err
    assert "you may not read the plan" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "wrong", ["https://anna:hunter2@x", {"tracking_url": "https://a:hunter2@x"}]
)
def test_a_wrong_section_shows_no_credentials(wrong):
    raw = {"models": {"one": {"tokenizer": "t"}}, "datasets": {"a": {"files": "a"}}}
    with pytest.raises(UserError) as error:
        load(raw | {"max_length": 8, "training": {"mlflow": wrong}})
    assert "training.mlflow" in str(error.value) and "hunter2" not in str(error.value)


SECRET = "anna:hunter2"


@pytest.mark.parametrize("uri", ["sqlite:///{}/text", f"http://{SECRET}@127.0.0.1:9"])
def test_a_database_that_can_t_be_used_is_said(
    cache, tokenizer, mlflow, tmp_path, monkeypatch, uri
):
    (tmp_path / "text").write_text("no database " * 999)
    uri = uri.format(tmp_path)
    run = make_run(cache, tokenizer, mlflow={"tracking_uri": uri}, max_steps=1)
    write_json(tmp_path / "run.json", run)
    script = f"from tokencache.training import tracking\ntracking.ATTEMPTS = 1\n{TRAIN}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = python(script, tmp_path / "run.json", tmp_path / "out", "go", beside=mlflow)
    assert f"training.mlflow: {uri.replace(SECRET, '***')} can't be used (" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed here")
def test_without_mlflow_it_is_said_what_to_install(cache, tokenizer, tmp_path):
    message = refused(make_run(cache, tokenizer, mlflow=True), tmp_path)
    assert "training.mlflow: MLflow is not installed here" in message
    assert "pip install mlflow-skinny" in message
