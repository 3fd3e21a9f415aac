"""A dataset in parts: the same bytes however many jobs write it."""

import json
import shutil

import numpy as np
import pytest
from datasets import load_from_disk
from helpers.shards import entry, tokens, write_shard

from tokencache.caches import dataset


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(dataset, "TOKENS_IN_A_FILE", 100)


@pytest.fixture
def shards(tmp_path):
    random = np.random.default_rng(5)
    found = [(random.integers(3, 90, n).tolist(), [True] * int(n))
             for n in random.integers(0, 30, 90)]  # fmt: skip
    return tokens({"train": [
        write_shard(tmp_path / f"{at}.arrow", found[at : at + 30]) for at in (0, 30, 60)
    ]})  # fmt: skip


def tree(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def parts_of(cache, shards, folder, count):
    for number in range(count):
        dataset.build_part(cache, shards, folder / str(number), number, count)
    return [folder / str(number) for number in range(count)]


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_any_number_of_parts_makes_the_same_bytes(tmp_path, shards, packing):
    cache = entry(16, "split", packing, {"fraction": 0.3, "seed": 1})
    dataset.build(cache, shards, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    names = [name for name in whole if name.endswith(".arrow")]
    assert len(names) > 8
    for count in (1, 2, 5, len(names) + 3):
        folder = tmp_path / f"{count}"
        parts = parts_of(cache, shards, folder, count)
        written = [set(tree(part)) - {"files.json"} for part in parts]
        assert sorted(name for part in written for name in part) == sorted(names)
        assert max(map(len, written)) - min(map(len, written)) <= 1, "as much for each job"
        dataset.build(cache, shards, tmp_path / f"of-{count}", parts)
        assert tree(tmp_path / f"of-{count}") == whole
        shutil.rmtree(folder)  # the cache does not need them any more
        assert tree(tmp_path / f"of-{count}") == whole
    state = json.loads(whole["train/state.json"])
    assert [f"train/{file['filename']}" for file in state["_data_files"]] == sorted(
        name for name in names if name.startswith("train")
    )
    assert len(load_from_disk(str(tmp_path / "of-5"))["train"]) > 20


def test_where_files_end_depends_on_the_rows_alone(tmp_path, shards):
    """Rows appended move no file's end before them."""
    cache = entry(16)
    dataset.build(cache, shards, tmp_path / "few")
    more = [([5] * 9, [True] * 9)] * 40
    path = write_shard(tmp_path / "more.arrow", more)
    paths = [*shards["splits"]["train"]["paths"], path]
    dataset.build(cache, tokens({"train": paths}), tmp_path / "more")
    few, many = (
        [len(file) for name, file in sorted(tree(tmp_path / which).items())
         if name.endswith(".arrow")]
        for which in ("few", "more")
    )  # fmt: skip
    assert many[: len(few) - 1] == few[:-1]


def test_what_the_parts_lack_is_written(tmp_path, shards):
    """Another process that makes the cache first removes them."""
    cache = entry(16)
    dataset.build(cache, shards, tmp_path / "whole")
    parts = parts_of(cache, shards, tmp_path / "parts", 3)
    next(parts[1].rglob("*.arrow")).unlink()
    shutil.rmtree(parts[2])
    dataset.build(cache, shards, tmp_path / "out", parts)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_parts_of_another_cache_are_not_taken(tmp_path, shards):
    parts = parts_of(entry(16), shards, tmp_path / "parts", 3)
    other = entry(24, key="1" * 32)
    dataset.build(other, shards, tmp_path / "whole")
    dataset.build(other, shards, tmp_path / "out", parts)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_file_of_a_part_that_was_cut_short_is_written_anew(tmp_path, shards):
    cache = entry(16)
    dataset.build(cache, shards, tmp_path / "whole")
    parts = parts_of(cache, shards, tmp_path / "parts", 2)
    file = next(parts[1].rglob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-1])
    dataset.build(cache, shards, tmp_path / "joined", parts)
    assert tree(tmp_path / "joined") == tree(tmp_path / "whole")
