"""What keys are made of, through the plan: what changes them, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_tokenizer
from workflow import TINY, rows, write_rows

from tokencache import cli
from tokencache.config import load
from tokencache.files import write_json
from tokencache.plan import Plan
from tokencache.resolve import resolve


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("bos_eos", tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data/a.jsonl", rows(20))
    return tmp_path


@pytest.fixture
def plan(folder, tokenizer):
    """The plan of a data set and more of a configuration."""

    def made(dataset=None, **more) -> Plan:
        dataset = {"files": "data", "document": {"text": "prompt"}} | (dataset or {})
        models = {"m": {"tokenizer": str(tokenizer), "architecture": TINY}}
        return resolve(
            load({"models": models, "datasets": {"qa": dataset}, "max_length": 32} | more)
        )

    return made


def key(plan):
    [path] = plan.caches
    return plan.caches[path]["key"]


def test_what_the_workflow_writes_into_a_folder_with_data_is_no_data(plan, folder):
    own = {"cache": "data/cache", "results": "data/results"}
    before = plan(**own)
    [path] = before.caches
    write_json(Path(path, "cache.json"), before.provenance(path))
    write_json(folder / "data/results/m/qa/32-0/run.json", {})
    for files in ("data", "data/*", "**/*.json*", "."):
        assert key(plan({"files": files}, **own)) == key(before)


@pytest.mark.parametrize("left", [0, 1, 1000, -3])
def test_a_plan_that_is_cut_is_one_message(plan, folder, capsys, left):
    found = plan()
    found.write()
    text = Path(found.path).read_bytes()
    Path(found.path).write_bytes(text[:left])
    for words in (["tokenize", "--plan", found.path, "qa-0001"], ["status"]):
        capsys.readouterr()
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert f"the plan {found.path} is damaged" in said and "run snakemake again" in said
        assert "Traceback" not in said
