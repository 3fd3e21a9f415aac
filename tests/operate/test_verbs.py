"""The verbs of the command line, on a cache folder that a workflow made."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from helpers.workflow import Workflow, rows

CONFIG = {
    "models": {"one": {"tokenizer": "tokenizer"}},
    "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one cache that is there."""
    folder = tmp_path_factory.mktemp("operate")
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, CONFIG, {"data/a.jsonl": rows(80)})
    workflow.run("caches")
    return workflow


def test_path_of_a_cache(made):
    [cache] = made.folder.glob("cache/one/qa/32-*")
    assert made.tokencache("path", "one", "qa", "32") == f"{cache.relative_to(made.folder)}\n"


def test_path_of_a_cache_that_is_not_there_says_how_to_make_it(made):
    made.configure(CONFIG | {"max_length": [32, 48]})
    said = made.tokencache("path", "one", "qa", "48", fails=True)
    assert "is not there yet; make it: snakemake --cores all cache/one/qa/48-" in said


def test_path_of_what_config_does_not_name(made):
    said = made.tokencache("path", "one", "qq", "32", fails=True)
    assert "unknown dataset" in said and "qa" in said and "Traceback" not in said


def test_export_of_a_cache_by_its_name_and_by_its_folder(made):
    made.configure(CONFIG)
    [cache] = made.folder.glob("cache/one/qa/32-*")
    said = made.tokencache("export", "one", "qa", "32", "--to", "numpy", "out/named")
    assert said.endswith("out/named\n") and "export train" in said
    made.tokencache("export", str(cache), "--to", "numpy", "out/found", "--split", "train")
    name = "train.npy"
    assert (made.folder / "out/named" / name).read_bytes() == (
        (made.folder / "out/found" / name).read_bytes()
    )
    said = made.tokencache("export", str(cache), "--to", "numpy", "out/found", fails=True)
    assert "out/found is there already" in said
    said = made.tokencache("export", str(cache), "--to", "megatrom", "out/m", fails=True)
    assert "did you mean 'megatron'?" in said
    said = made.tokencache("export", "one", "qa", "--to", "numpy", "out/n", fails=True)
    assert "MODEL DATASET MAX_LENGTH" in said
