"""A view gives the rows of the dataset of the same key's parts, and holds no tokens."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from blake3 import blake3
from helpers.datafiles import fails
from helpers.shards import build, entry, tokens, write_shard
from helpers.training import deterministic, make_run, make_tokenizer, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.caches import dataset
from tokencache.caches.view import View, open_cache
from tokencache.training import collate


def documents(count, seed=0, masked=False, longest=30):
    """Documents between a special token before and one after, some empty, with their masks."""
    random = np.random.default_rng(seed)
    made = []
    for length in random.integers(0, longest, count):
        ids = [1, *random.integers(10, 90, int(length)).tolist(), 2] if length else []
        some = random.random(len(ids)) < 0.4 if masked else np.ones(len(ids), bool)
        made.append((ids, some.tolist()))
    return made


def both(folder, paths, wanted):
    """The same cache as a dataset and as a view; cache.json of each."""
    splits = paths if isinstance(paths, dict) else {"train": paths}
    _, as_dataset = build(folder / "dataset", splits, wanted, 1, 1)
    as_view = dataset.build(wanted | {"format": "view"}, tokens(splits, 1, 1), folder / "view")
    return as_dataset, as_view


def write_shards(folder, found, masked=False, ids="uint16", batch=7):
    return [
        write_shard(folder / "tokens" / f"{n}.arrow", found[at : at + 25], masked, ids, batch)
        for n, at in enumerate(range(0, len(found), 25))
    ]


def assert_same(rows, view):
    """Every way that a trainer reads rows gives the same from both."""
    rows = rows.with_format("numpy")
    assert view.column_names == rows.column_names
    assert len(view) == len(rows)
    everything = list(range(len(rows)))
    for wanted, found in zip(
        rows.__getitems__(everything), view.__getitems__(everything), strict=True
    ):
        assert list(wanted) == list(found)
        for name in wanted:
            assert found[name].dtype == wanted[name].dtype == np.int64
            assert np.array_equal(found[name], wanted[name])


@pytest.mark.parametrize("overflow", ["truncate", "split", "drop"])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize(("masked", "ids"), [(False, "uint16"), (True, "int32")])
def test_rows_are_those_of_the_dataset(tmp_path, overflow, packing, masked, ids):
    paths = write_shards(tmp_path, documents(120, 3, masked), masked, ids)
    wanted = entry(12, overflow, packing, {"fraction": 0.2, "seed": 7})
    as_dataset, as_view = both(tmp_path, paths, wanted)
    assert as_view["splits"] == as_dataset["splits"]
    assert as_view["documents"] == as_dataset["documents"]
    rows, views = open_cache(tmp_path / "dataset"), open_cache(tmp_path / "view")
    assert list(rows) == list(views) == ["train", "validation"]
    for name in rows:
        assert isinstance(rows[name], datasets.Dataset) and isinstance(views[name], View)
        assert_same(rows[name], views[name])
        ours, theirs = collate.split(views[name]), collate.split(rows[name])
        told = collate.split(rows[name], as_dataset["splits"][name])
        for fact in ("packed", "tokens", "targets", "left_out"):
            assert getattr(ours, fact) == getattr(theirs, fact) == getattr(told, fact)
        assert ours.lengths.tolist() == theirs.lengths.tolist() == told.lengths.tolist()
        assert_same(theirs.rows, ours.rows)
        some = [len(theirs.rows) - 1, 1, 1]
        assert_same(theirs.rows.select(some), ours.rows.select(some))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60), st.integers(4, 40), st.sampled_from(["truncate", "split", "drop"]),
    st.sampled_from(["none", "best_fit"]), st.booleans(), st.integers(1, 9), st.data(),
)  # fmt: skip
def test_any_rows_in_any_order(seed, max_length, overflow, packing, masked, batch, data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = [([1, 9, 2], [True] * 3), *documents(40, seed, masked)]
        paths = write_shards(folder, shard, masked, batch=batch)
        both(folder, paths, entry(max_length, overflow, packing))
        rows = open_cache(folder / "dataset", "train").with_format("numpy")
        view = open_cache(folder / "view", "train")
        some = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=8))
        assert_same(rows.select([n % len(rows) for n in some]), view.select(some))


def test_it_reads_like_a_dataset(tmp_path):
    paths = write_shards(tmp_path, documents(60))
    both(tmp_path, paths, entry(12, packing="best_fit"))
    rows = open_cache(tmp_path / "dataset", "train").with_format("numpy")
    view = open_cache(str(tmp_path / "view"), split="train")
    for wanted in (0, -1, np.int64(3)):
        assert all(np.array_equal(view[wanted][n], rows[int(wanted)][n]) for n in rows.column_names)
    part = view[2:9:3]
    assert [ids.tolist() for ids in part["input_ids"]] == [
        rows[n]["input_ids"].tolist() for n in (2, 5, 8)
    ]
    assert [r["labels"].tolist() for r in view] == [r["labels"].tolist() for r in rows]
    assert view.lengths().tolist() == [len(ids) for ids in rows["input_ids"]]
    chosen = view.select([4, 2]).select([1])
    assert chosen.lengths().tolist() == [len(rows[2]["input_ids"])]
    assert len(chosen) == 1 and len(view.select([])) == 0 and view.__getitems__([]) == []
    for wrong in (len(view), -len(view) - 1):
        with pytest.raises(IndexError):
            view[wrong]
    with pytest.raises(IndexError):
        chosen[1]


def test_workers_of_a_data_loader_read_it(tmp_path):
    paths = write_shards(tmp_path, documents(60))
    both(tmp_path, paths, entry(12))
    view = open_cache(tmp_path / "view", "train").select(range(3, 40))
    again = pickle.loads(pickle.dumps(view))
    assert [r["input_ids"].tolist() for r in again] == [r["input_ids"].tolist() for r in view]
    collator = collate.Collator(0, 12, packed=False)
    for start in ("fork", "spawn"):
        batches = torch.utils.data.DataLoader(
            view, batch_size=8, collate_fn=collator, num_workers=2, multiprocessing_context=start
        )
        found = []
        for batch in batches:
            pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
            found += [row[: int(mask.sum())].tolist() for row, mask in pairs]
        assert found == [r["input_ids"].tolist() for r in view]


def test_it_takes_a_few_bytes_a_document(tmp_path):
    found = documents(5000, longest=200)
    paths = [write_shard(tmp_path / "tokens" / "0.arrow", found, batch=5000)]
    for overflow, packing, most in (
        ("truncate", "none", 6), ("split", "none", 10), ("truncate", "best_fit", 10)
    ):  # fmt: skip
        out = tmp_path / f"{overflow}-{packing}"
        wanted = entry(64, overflow, packing) | {"format": "view"}
        made = dataset.build(wanted, tokens({"train": paths}, 1, 1), out)
        files = made["files"].items()
        size = sum(file["bytes"] for name, file in files if not name.startswith("report"))
        assert size < most * made["splits"]["train"]["windows"] + 3000
        there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
        assert set(made["files"]) == there - {"cache.json"}


def test_two_builds_are_equal_wherever_they_stand(tmp_path):
    found = documents(60)
    for name in ("one", "two"):
        both(tmp_path / name, write_shards(tmp_path / name, found), entry(12, "split", "best_fit"))
    one, two = tmp_path / "one/view", tmp_path / "two/view"
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    # And so all of it can be moved, or be reached by another name.
    shutil.move(tmp_path / "one", tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved/view")
    rows = open_cache(tmp_path / "two/view", "train")
    assert_same(
        open_cache(tmp_path / "moved/dataset", "train"), open_cache(tmp_path / "link", "train")
    )
    assert len(rows) == len(open_cache(tmp_path / "moved/view", "train"))


def test_no_file_stays_open(tmp_path):
    """However many token shards there are."""
    paths = write_shards(tmp_path, documents(1000), batch=25)
    both(tmp_path, paths, entry(12, packing="best_fit"))
    view = open_cache(tmp_path / "view", "train")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(list(view)) > 100
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_a_split_without_a_row(tmp_path, packing):
    paths = {
        "train": write_shards(tmp_path, documents(20)),
        "validation": [write_shard(tmp_path / "tokens/empty.arrow", [])],
    }
    both(tmp_path, paths, entry(12, packing=packing, validation="given"))
    validation = open_cache(tmp_path / "view", "validation")
    assert len(validation) == 0 and list(validation) == []
    assert collate.split(validation).targets == 0


def test_a_token_shard_that_is_gone_is_named(tmp_path):
    found = documents(60, masked=True)
    paths = write_shards(tmp_path, found, masked=True)
    both(tmp_path, paths, entry(12))
    Path(paths[1]).unlink()
    view = open_cache(tmp_path / "view", "train")
    view[0]  # what is there can be read
    said = fails(lambda: list(view), paths[1], "holds no tokens itself", "run `snakemake caches`")
    assert said == fails(lambda: collate.split(view), paths[1])
    write_shard(Path(paths[1]), found[:3], masked=True)
    fails(lambda: list(view), paths[1], "is not what it was", "run snakemake again")
    Path(paths[1]).write_bytes(b"something else")
    fails(lambda: list(view), paths[1], "can't be read", "run snakemake again")
    # Said beside it: of a file of another length nothing is read.
    Path(paths[1]).with_suffix(".json").write_text('{"bytes": 17}')
    for read in (lambda: list(view), lambda: collate.split(view)):
        fails(read, paths[1], "it has 14 bytes instead of 17", "tokencache verify --repair")


def test_what_is_no_cache_is_refused(tmp_path):
    fails(
        lambda: open_cache(tmp_path / "nothing"), "nothing", "missing or damaged", "with snakemake"
    )
    both(tmp_path, write_shards(tmp_path, documents(20)), entry(12))
    for name in ("view", "dataset"):
        fails(lambda f=tmp_path / name: open_cache(f, "test"), "unknown split 'test'", "train")


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_training_gives_the_same_weights(tmp_path, packing):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    paths = write_shards(tmp_path, documents(80, masked=True), masked=True)
    wanted = entry(32, "split", packing, {"fraction": 0.2, "seed": 1}, "c" * 32)
    both(tmp_path, paths, wanted)
    found = []
    for name in ("dataset", "view"):
        run = make_run(tmp_path / name, tokenizer, max_steps=6)
        found.append(deterministic(trained(run, tmp_path / f"run-{name}")))
    assert found[0] == found[1]
    assert "model.safetensors" in found[0][1]
    torch.set_num_threads(threads)


def test_cache_json_is_of_the_view(tmp_path):
    _, made = both(tmp_path, write_shards(tmp_path, documents(20)), entry(12))
    folder = tmp_path / "view"
    assert json.loads((folder / "cache.json").read_text()) == made
    for name, said in made["files"].items():
        data = (folder / name).read_bytes()
        assert said == {"bytes": len(data), "blake3": blake3(data).hexdigest()}
