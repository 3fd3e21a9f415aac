"""Caches in the formats of other trainers, read back as their documents describe them."""

from __future__ import annotations

import gzip
import json
import struct

import datasets
import numpy as np
import pytest
from conftest import make_tokenizer
from helpers.datafiles import fails
from helpers.shards import build, entry, tokens, write_shard

from tokencache.base.hashing import hash_file
from tokencache.caches import dataset
from tokencache.caches.view import open_cache
from tokencache.operate.export import export
from tokencache.operate.lib.blocks import blocks

MAX_LENGTH = 24
KEY = "1" * 32
FACTS = {"key": KEY, "vocab_size": 600, "bos_token": "<s>", "eos_token": "</s>"}


def provenance(loss, packing, pairs=False):
    recipe = {"loss": loss, "form": "text"}
    return {
        "model": "model", "dataset": "data", "tokenizer": FACTS, "sources": {}, "versions": {},
        "recipe": {"source": recipe, "target": recipe} if pairs else recipe,
        "settings": {"max_length": MAX_LENGTH, "packing": packing},
    }  # fmt: skip


def documents(count, seed, masked):
    random = np.random.default_rng(seed)
    found = []
    for length in random.integers(3, 15, count):
        ids = [*random.integers(2, 600, int(length)).tolist(), 1 + int(length % 5 == 0)]
        found.append((ids, [not masked or n > length // 3 for n in range(len(ids))]))
    return found


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """By (format, packing, loss) a cache folder, the splits as `datasets` or a view has them."""
    folder = tmp_path_factory.mktemp("caches")
    make_tokenizer("bos_eos", folder / "cache/tokenizers" / KEY)
    found = {}
    for loss in ("all", "completion"):
        masked = loss != "all"
        shards = [
            write_shard(folder / f"tokens/{loss}{n}.arrow", documents(40, n, masked), masked)
            for n in range(2)
        ]
        paths = {"train": shards[:1], "validation": shards[1:]}
        for packing in ("none", "best_fit"):
            wanted = entry(MAX_LENGTH, "drop", packing, "given")
            about = tokens(paths, 0, 0, provenance(loss, packing))
            for format in ("dataset", "view"):
                out = folder / "cache/model/data" / f"{format}-{packing}-{loss}"
                dataset.build(wanted | {"format": format}, about, out)
                found[format, packing, loss] = out
    return found


CASES = [(f, p, loss) for f in ("dataset", "view") for p in ("none", "best_fit")
         for loss in ("all", "completion")]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def cache(request, caches):
    return caches[request.param]


def rows_of(cache, split="train"):
    found = open_cache(cache, split)
    return [{name: list(map(int, values)) for name, values in row.items()} for row in found]


def documents_of(cache, split="train"):
    """(ids, labels) of each document, cut out of the rows."""
    found = []
    for row in rows_of(cache, split):
        start = 0
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            part = slice(start, start + length)
            found.append((row["input_ids"][part], row["labels"][part]))
            start += length
    return found


def exported(cache, name, out, **more):
    """Export, and check what is said of the files."""
    made = export(cache, name, out, **more)
    assert made == json.loads((out / "export.json").read_text())
    on_disk = {str(p.relative_to(out)): p for p in out.rglob("*") if p.is_file()}
    assert made["files"].keys() == on_disk.keys() - {"export.json"}
    for name, about in made["files"].items():
        assert about == {"bytes": on_disk[name].stat().st_size, "blake3": hash_file(on_disk[name])}
    return made


def test_blocks_are_the_rows(cache):
    found = []
    for block in blocks(cache, "train"):
        cut = {n: np.split(v, o[1:-1]) for n, (o, v) in block.columns.items()}
        found += [{n: v[i].tolist() for n, v in cut.items()} for i in range(len(block))]
    assert found == rows_of(cache)


def test_megatron(cache, tmp_path):
    exported(cache, "megatron", tmp_path / "out", without_mask=True)
    for split in ("train", "validation"):
        index = (tmp_path / f"out/{split}.idx").read_bytes()
        assert index[:9] == b"MMIDIDX\x00\x00"
        version, code, count, ends = struct.unpack("<QBQQ", index[9:34])
        assert (version, code, ends) == (1, 8, count + 1)
        lengths = np.frombuffer(index, "<i4", count, 34)
        pointers = np.frombuffer(index, "<i8", count, 34 + 4 * count)
        indices = np.frombuffer(index, "<i8", ends, 34 + 12 * count)
        assert len(index) == 34 + 12 * count + 8 * ends
        assert indices.tolist() == list(range(count + 1))
        data = (tmp_path / f"out/{split}.bin").read_bytes()
        assert len(data) == 2 * lengths.sum()
        found = [np.frombuffer(data, "<u2", n, p).tolist()
                 for n, p in zip(lengths.tolist(), pointers.tolist(), strict=True)]  # fmt: skip
        assert found == [ids for ids, _ in documents_of(cache, split)]


def test_numpy(cache, tmp_path):
    made = exported(cache, "numpy", tmp_path / "out")
    ids = np.memmap(tmp_path / "out/train.npy", "<u2", "r")
    with gzip.open(tmp_path / "out/train.csv.gz", "rt") as lines:
        places = [tuple(map(int, line.split(","))) for line in lines]
    wanted = documents_of(cache)
    assert [ids[start:end].tolist() for start, end in places] == [ids for ids, _ in wanted]
    assert places[0][0] == 0 and places[-1][1] == len(ids)
    mask = tmp_path / "out/label_mask/train.npy"
    assert mask.exists() == (made["loss_mask"] == "kept")
    if mask.exists():
        trained = [label != -100 for _, labels in wanted for label in labels]
        assert np.memmap(mask, np.bool_, "r").tolist() == trained


def test_nanotron(cache, tmp_path):
    made = exported(cache, "nanotron", tmp_path / "out", without_mask=True)
    ids = np.fromfile(tmp_path / "out/train/train.ds", "<u2")
    ends = np.fromfile(tmp_path / "out/train/train.ds.index", "<u8").astype(int)
    found = [part.tolist() for part in np.split(ids, ends[:-1])]
    assert found == [ids for ids, _ in documents_of(cache)] and ends[-1] == len(ids)
    name, count, _ = (tmp_path / "out/train/train.ds.metadata").read_text().split("\n")
    assert name.endswith(f"{KEY}|2") and int(count) == made["splits"]["train"]["tokens"]


def test_parquet(cache, tmp_path):
    exported(cache, "parquet", tmp_path / "out")
    files = {split: str(tmp_path / f"out/{split}.parquet") for split in ("train", "validation")}
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    for split in files:
        assert found[split].to_list() == rows_of(cache, split)


def test_axolotl(cache, tmp_path):
    """Its documentation: the columns are exactly these, and it packs rows itself."""
    exported(cache, "axolotl", tmp_path / "out")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert sorted(found) == ["train", "validation"]
    for split, rows in found.items():
        assert set(rows.column_names) == {"input_ids", "attention_mask", "labels"}
        wanted = [(ids, [-100, *labels[1:]]) for ids, labels in documents_of(cache, split)]
        assert [(row["input_ids"], row["labels"]) for row in rows] == wanted
        assert all(row["attention_mask"] == [1] * len(row["labels"]) for row in rows)


def test_llamafactory(cache, tmp_path):
    exported(cache, "llamafactory", tmp_path / "out", only="train")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert sorted(found) == ["train"]
    for row, wanted in zip(found["train"], rows_of(cache), strict=True):
        size = len(wanted["input_ids"])
        assert row["input_ids"][:size] == wanted["input_ids"]
        assert row["labels"][:size] == wanted["labels"]
        if "seq_lengths" not in wanted:
            assert row["attention_mask"] == [1] * size == [1] * len(row["input_ids"])
            continue
        numbers = [n for n, count in enumerate(wanted["seq_lengths"], 1) for _ in range(count)]
        padding = MAX_LENGTH + 1 - size
        assert row["attention_mask"] == numbers + [0] * padding
        assert row["labels"][size:] == [-100] * padding
        assert row["position_ids"] == wanted["position_ids"] + [0] * padding
        assert len(row["input_ids"]) == MAX_LENGTH + 1


def test_a_large_vocabulary_and_no_rows(tmp_path):
    out = tmp_path / "cache/model/data/large"
    some = [write_shard(tmp_path / "a.arrow", [([70_000, 5], [True, True])], ids="int32")]
    none = [write_shard(tmp_path / "b.arrow", [], ids="int32")]
    about = provenance("all", "none")
    about["tokenizer"] = FACTS | {"vocab_size": 100_000}
    build(out, {"train": some, "validation": none}, entry(8, validation="given"), 0, 0, about)
    for name in ("megatron", "numpy", "nanotron", "parquet", "axolotl", "llamafactory"):
        exported(out, name, tmp_path / name)
    assert np.fromfile(tmp_path / "numpy/train.npy", "<u4").tolist() == [70_000, 5]
    assert np.fromfile(tmp_path / "megatron/train.bin", "<i4").tolist() == [70_000, 5]
    assert (tmp_path / "megatron/train.idx").read_bytes()[17] == 4
    assert len(datasets.load_from_disk(str(tmp_path / "axolotl"))["validation"]) == 0


def test_sources_and_targets_go_to_parquet_alone(tmp_path):
    out = tmp_path / "cache/model/data/pairs"
    sides = [documents(5, seed, False) for seed in (1, 2)]
    paths = [
        {"train": [write_shard(tmp_path / f"{n}.arrow", side)]} for n, side in enumerate(sides)
    ]
    about = tokens(paths[0], 0, 0, provenance("all", "none", pairs=True))
    about["targets"] = tokens(paths[1])["splits"]
    dataset.build(entry(MAX_LENGTH), about, out)
    exported(out, "parquet", tmp_path / "parquet")
    found = datasets.Dataset.from_parquet(
        str(tmp_path / "parquet/train.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert found["labels"][:] == [ids for ids, _ in sides[1]]
    fails(lambda: export(out, "axolotl", tmp_path / "other"), "sources and targets", "parquet")


def test_a_lost_mask_is_refused_unless_asked_for(caches, tmp_path):
    masked, whole = (caches["dataset", "none", loss] for loss in ("completion", "all"))
    for name in ("megatron", "nanotron"):
        words = ("loss: completion", "--without-mask", "numpy")
        fails(lambda name=name: export(masked, name, tmp_path / name), *words)
        assert export(masked, name, tmp_path / name, "train", True)["loss_mask"] == "lost"
        assert export(whole, name, tmp_path / f"{name}2", "train")["loss_mask"] == "none"


def test_documents_without_an_end_are_counted(caches, tmp_path, capsys):
    cache = caches["dataset", "best_fit", "all"]
    made = export(cache, "numpy", tmp_path / "out")
    found = documents_of(cache) + documents_of(cache, "validation")
    count = sum(ids[-1] != 1 for ids, _ in found)
    assert made["documents_without_eos_token"] == count > 0
    assert f"note: {count} of 80 documents don't end in </s>" in capsys.readouterr().err


def test_damage_and_mistakes(caches, tmp_path):
    cache = caches["dataset", "none", "all"]
    fails(lambda: export(cache, "numpy", tmp_path / "out", "test"), "unknown split 'test'")
    fails(lambda: export(tmp_path, "numpy", tmp_path / "out"), "missing or damaged")
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())
