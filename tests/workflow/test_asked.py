"""What a run was asked for is there at its end, or its exit status says that it is not."""

import re

import pytest
from conftest import make_tokenizer
from helpers.workflow import Workflow, rows, write_rows
from test_faults import wait_for

# In one worker, so that what the tests share is made once.
pytestmark = pytest.mark.xdist_group("workflow_asked")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A workflow with a data set of a hub, which a job of its own fetches."""
    folder = tmp_path_factory.mktemp("asked") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    write_rows(folder / "hub/train.jsonl", rows(90))
    config = {
        "models": {"one": {"tokenizer": "tokenizer"}},
        "datasets": {"qa": {"hub": "./hub", "num_shards": 2, "document": {"text": "{prompt}"}}},
        "max_length": [16, 32],
    }
    return Workflow.new(folder, config)


@pytest.fixture
def workflow(fresh, tmp_path):
    return fresh.copy(tmp_path / "w")


def test_snakemake_killed_while_it_fetches(workflow):
    """Its job ends well, and Snakemake's mark says that the job did not."""
    lost = workflow.start("caches")
    wait_for(workflow, "logs/fetch/*.log", lost)
    lost.kill()  # and not what it started
    lost.communicate()  # until the job has ended too
    assert list(workflow.folder.glob("cache/sources/*/00001.arrow"))
    output = workflow.run("caches")
    assert "another process made it" in output
    assert len(workflow.targets()) == 2, output
    assert workflow.jobs("caches") == {}


def test_what_was_asked_for_and_is_missing(workflow):
    workflow.edit("Snakefile", "onsuccess:\n", 'onsuccess:\n    shell("rm -r cache/one/qa/16-*")\n')
    output = workflow.run("caches", fails=True)
    [path] = re.findall(r"tokencache: this run ended without\n  (cache/one/qa/16-\w+)\n", output)
    assert "Traceback" not in output
    assert not list(workflow.folder.glob(".tokencache/done/*"))
    assert not list(workflow.folder.glob("cache/.workflow-*"))
    assert not list(workflow.folder.glob(".snakemake/locks/*"))
    assert f"without\n  {path}\n" in workflow.run(path, fails=True)
