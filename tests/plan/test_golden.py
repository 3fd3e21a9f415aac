"""Every key of the demo and the examples: a key that changes makes users tokenize again, so a
change has to be meant, and its version raised.

After such a change: `python tests/plan/test_golden.py >tests/plan/golden_keys.json`.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tokencache.config.load import load
from tokencache.plan.resolve import resolve

ROOT = Path(__file__).parents[2]
CONFIGS = ("config.yaml", "examples/code.yaml", "examples/four-models.yaml",
           "examples/translation.yaml")  # fmt: skip


def words(number):
    return " ".join(
        f"word{(number * 31 + i * 17) % 97} über {number % 7}" for i in range(3 + number % 40)
    )


def write_data(folder):
    """Data with the columns of the demo and the examples; what they download or take from
    Python's own library differs between machines."""

    def write(name, row):
        text = "".join(json.dumps(row(n), ensure_ascii=False) + "\n" for n in range(400))
        (folder / "data" / name).write_text(text, encoding="utf-8")

    def turns(number):
        asked = {"role": "user", "content": f"What is {number}?"}
        return [asked, {"role": "assistant", "content": words(number)}]

    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "data").mkdir()
    write("qa.jsonl", lambda n: {"prompt": f"What is {n}?", "completion": words(n),
                                 "messages": turns(n)})  # fmt: skip
    write("docs.jsonl", lambda n: {"text": words(n) * 5})
    write("numbers.jsonl", lambda n: {"english": words(n), "german": words(n + 1)})


def keys(config):
    """The keys in the plan of a configuration in the present folder."""
    plan = resolve(load(yaml.safe_load((ROOT / config).read_text())))
    data = plan.data
    return {
        "shards": sorted(data["shards"]),
        "recipes": sorted(data["recipes"]),
        "tokenizers": sorted(Path(folder).name for folder in plan.tokenizers),
        "tokens": sorted(data["tokens"]),
        "token_sets": sorted(data["token_sets"]),
        "caches": {path: cache["key"] for path, cache in plan.caches.items()},
        "runs": {path: run["key"] for path, run in plan.runs.items()},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    write_data(folder)
    return folder


@pytest.mark.parametrize("config", CONFIGS)
def test_keys_are_those_of_before(config, folder, monkeypatch):
    monkeypatch.chdir(folder)
    golden = json.loads((Path(__file__).parent / "golden_keys.json").read_text())
    assert keys(config) == golden[config]


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    write_data(Path.cwd())
    json.dump({config: keys(config) for config in CONFIGS}, sys.stdout, indent=1, sort_keys=True)
    print()
