"""A cache's rows are what a few lines of plain Python make of the same documents."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from helpers.datafiles import fails
from helpers.shards import IGNORED, build, entry, labelled, naive_windows, tokens, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.base.hashing import hash_file
from tokencache.base.manifest import beside
from tokencache.caches import dataset, windows
from tokencache.caches.rows import Gatherer
from tokencache.caches.view import open_cache
from tokencache.tokens.read import Documents


def document(length, first=10, prefix=0, suffix=0, mask=None):
    """Content that counts up from `first`, between special tokens 1, 2, … and 5, 6, …"""
    content = [first + n for n in range(length)]
    ids = [*range(1, 1 + prefix), *content, *range(5, 5 + suffix)]
    return ids, mask or [True] * len(ids)


def tree(folder):
    """Digests of all files of a folder by their paths in it."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@st.composite
def shards(draw):
    """Shards of documents with the same numbers of special tokens, and how to cut them."""
    prefix, suffix = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    masked = draw(st.booleans())

    def one(length):
        ids = document(length, draw(st.integers(10, 60)), prefix, suffix)[0]
        mask = [True] * len(ids)
        if masked:
            mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        return ids, mask

    lengths = st.lists(st.integers(0, 25), max_size=7)
    found = [[one(n) for n in draw(lengths)] for _ in range(draw(st.integers(1, 3)))]
    wanted = entry(
        draw(st.integers(prefix + suffix + 1, 14)),
        draw(st.sampled_from(["truncate", "split", "drop"])),
        draw(st.sampled_from(["none", "best_fit"])),
    ) | {"truncation_side": draw(st.sampled_from(["right", "left"]))}
    return found, prefix, suffix, masked, wanted


@settings(max_examples=250, deadline=None)
@given(shards(), st.integers(1, 4))
def test_rows_are_those_of_plain_python(drawn, batch):
    found, prefix, suffix, masked, wanted = drawn
    everything = [d for shard in found for d in shard]
    expected = naive_windows(everything, wanted, prefix, suffix)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_shard(Path(folder, f"{n}.arrow"), shard, masked, batch=batch)
            for n, shard in enumerate(found)
        ]
        whole = Documents(paths)
        assert whole.length.tolist() == [len(ids) for ids, _ in everything]
        assert whole.counts.tolist() == [len(shard) for shard in found]
        cut, counts = windows.windows(
            whole, wanted["max_length"], wanted["overflow"], prefix, suffix
        )
        cutting = windows.cut_of(wanted, tokens({}, prefix, suffix), {"train": counts})
        gather = Gatherer(whole.segments, whole.masked, cutting)
        ids, trained, lengths = gathered(gather, cut)
        ends = np.cumsum(lengths)[:-1]
        made = (
            [
                (int(number), i.tolist(), t.tolist())
                for number, i, t in zip(
                    cut.document, np.split(ids, ends), np.split(trained, ends), strict=True
                )
            ]
            if len(lengths)
            else []
        )
        assert made == expected
        check_counts(counts, everything, expected, wanted, prefix + suffix)
        check_rows(cut, wanted)
        # Any choice of windows, in any order, is gathered alike.
        some = np.arange(len(expected))[::-2]
        ids, trained, _ = gathered(gather, cut[some])
        assert ids.tolist() == [i for n in some for i in expected[n][1]]
        assert trained.tolist() == [t for n in some for t in expected[n][2]]


def gathered(gather, found):
    """ids, which are trained on, and the windows' lengths."""
    columns = gather.columns(windows.Rows(found, np.arange(len(found) + 1), False))
    offsets, ids = columns["input_ids"]
    trained = columns["labels"][1] != IGNORED
    counts, but_first = gather.trained(found)
    ends = np.concatenate([[0], np.cumsum(trained)])[offsets]
    assert counts.tolist() == np.diff(ends).tolist()
    first = trained[offsets[:-1]]
    assert but_first.tolist() == (counts - first).tolist()
    return ids, trained, np.diff(offsets)


def check_counts(counts, everything, expected, wanted, specials):
    some = [ids for ids, _ in everything if len(ids) > specials]
    rooms = [len(ids) for ids in some if len(ids) > wanted["max_length"]]
    lost = {
        "truncate": sum(rooms) - wanted["max_length"] * len(rooms),
        "drop": sum(rooms),
        "split": 0,
    }
    assert counts == {
        "documents": len(everything),
        "documents_empty": len(everything) - len(some),
        "documents_too_long": len(rooms),
        "tokens_lost": lost[wanted["overflow"]],
    }
    if wanted["overflow"] == "split":
        by_document: dict[int, list[int]] = {}
        for number, ids, _ in expected:
            assert 0 < len(ids) <= wanted["max_length"]
            by_document.setdefault(number, []).extend(ids)
        assert list(by_document.values()) == some, "all windows together are the documents"


def check_rows(cut, wanted):
    made = windows.rows(cut, wanted["max_length"], wanted["packing"])
    sizes = cut.length
    if wanted["packing"] == "none":
        assert len(made) == len(sizes)
        assert made.windows is cut and not made.packed
        return
    assert made.packed
    assert made.first[0] == 0 and made.first[-1] == len(sizes) == len(made.windows.document)
    keys = list(zip(made.windows.document, made.windows.start, strict=True))
    assert sorted(keys) == sorted(zip(cut.document, cut.start, strict=True))
    ranges = list(pairwise(made.first))
    packed = made.windows.length
    assert all(0 < packed[a:b].sum() <= wanted["max_length"] for a, b in ranges)
    assert all(keys[a:b] == sorted(keys[a:b]) for a, b in ranges), "documents keep their order"
    firsts = [keys[a] for a, _ in ranges]
    assert firsts == sorted(firsts), "and so do rows, by their first document"


@pytest.mark.parametrize("overflow", ["truncate", "split", "drop"])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize(("masked", "ids"), [(False, "uint16"), (True, "int32")])
def test_cache_is_what_load_from_disk_opens(tmp_path, overflow, packing, masked, ids, monkeypatch):
    monkeypatch.setattr(dataset, "TOKENS_IN_A_FILE", 50)
    monkeypatch.setattr(dataset, "TOKENS_IN_A_BATCH", 30)
    random = np.random.default_rng(3)
    high = 70_000 if ids == "int32" else 65_530
    documents = []
    for length in random.integers(0, 30, 60):
        row, mask = document(int(length), int(random.integers(10, high)) - 60, 1, 1)
        documents.append((row, random.random(len(row)) < 0.5 if masked else mask))
    documents = [(row, [bool(m) for m in mask]) for row, mask in documents]
    paths = [
        write_shard(tmp_path / f"{n}.arrow", documents[a : a + 25], masked, ids, batch=7)
        for n, a in enumerate((0, 25, 50))
    ]
    wanted = entry(12, overflow, packing, {"fraction": 0.2, "seed": 7})
    found, made = build(tmp_path / "cache", paths, wanted, prefix=1, suffix=1)
    assert list(found) == ["train", "validation"]
    assert len(found["train"].cache_files) > 1
    columns = ["input_ids", "labels"]
    columns += ["position_ids", "seq_lengths"] if packing != "none" else []
    parts = []
    for name, rows in found.items():
        assert rows.column_names == columns
        for column in columns:
            whole = column == "labels" and not masked and packing == "none"
            whole = whole and overflow != "truncate"  # of some the end is not trained on
            kind = ids if whole or column == "input_ids" else "int32"
            assert rows.features[column] == datasets.List(datasets.Value(kind))
        assert str(rows.split) == name
        tokens_of = sum(len(ids) for ids in rows["input_ids"])
        assert len(rows.cache_files) >= max(1, tokens_of // 62)
        parts += check_split(rows, made["splits"][name], packing)
    assert sorted(parts) == sorted(
        (i, labelled(i, [False, *m[1:]] if packing != "none" else m))
        for _, i, m in naive_windows(documents, wanted, 1, 1)
    )
    assert found["train"]._fingerprint != found["validation"]._fingerprint


def check_split(rows, made, packing):
    """The documents' parts in the rows, with their labels; what cache.json says of them."""
    windows = []
    for row in rows:
        total = len(row["input_ids"])
        assert 0 < total <= 12
        lengths = row["seq_lengths"] if packing != "none" else [total]
        assert sum(lengths) == total == len(row["labels"])
        if packing != "none":
            assert row["position_ids"] == [n for length in lengths for n in range(length)]
        stops = np.cumsum(lengths).tolist()
        for start, stop in zip([0, *stops], stops, strict=False):
            windows.append((row["input_ids"][start:stop], row["labels"][start:stop]))
            assert packing == "none" or row["labels"][start] == IGNORED
    trained = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    targets = [sum(label != IGNORED for label in row["labels"][1:]) for row in rows]
    total = sum(len(row["input_ids"]) for row in rows)
    full = [
        n for n, row in enumerate(rows) if 12 in (row.get("seq_lengths") or [len(row["labels"])])
    ]
    assert made["rows_cut_without_trained_tokens"] <= made["rows_cut"] <= len(full)
    assert made == {
        "rows_cut": made["rows_cut"],
        "rows_cut_without_trained_tokens": made["rows_cut_without_trained_tokens"],
        "rows": len(rows),
        "windows": len(windows),
        "tokens": total,
        "tokens_trained": sum(trained),
        "rows_without_trained_tokens": trained.count(0),
        "targets": sum(targets),
        "rows_without_targets": [n for n, count in enumerate(targets) if not count],
        "filled": round(total / (12 * len(rows)), 6),
    }
    return windows


@pytest.mark.parametrize("format", ["dataset", "view"])
def test_an_end_that_is_not_the_documents_own_is_not_trained_on(tmp_path, format):
    """Ids stay those of Hugging Face; a model would learn to stop, or begin, in mid-sentence."""
    paths = [
        write_shard(tmp_path / "0.arrow", [document(9, prefix=1, suffix=2), document(2, 50, 1, 2)])
    ]
    for side, cut, trained in (
        ("right", [1, 10, 11, 12, 13, 5, 6], [1, 10, 11, 12, 13, IGNORED, IGNORED]),
        ("left", [1, 15, 16, 17, 18, 5, 6], [IGNORED, IGNORED, 16, 17, 18, 5, 6]),
    ):
        for packing in ("none", "best_fit"):
            wanted = entry(7, packing=packing) | {"truncation_side": side, "format": format}
            out = tmp_path / f"{side}-{packing}"
            made = dataset.build(wanted, tokens({"train": paths}, 1, 2), out)["splits"]["train"]
            rows = [dict(row) for row in open_cache(out, "train")]
            first = [IGNORED] if packing != "none" else []
            assert [list(row["input_ids"]) for row in rows] == [cut, [1, 50, 51, 5, 6]]
            labels = [trained, [1, 50, 51, 5, 6]]
            assert [list(r["labels"]) for r in rows] == [
                first + ids[len(first) :] for ids in labels
            ]
            assert (made["rows_cut"], made["rows_cut_without_trained_tokens"]) == (1, 0)
            assert made["targets"] == sum(i != IGNORED for ids in labels for i in ids[1:])


def test_a_row_whose_completion_was_cut_away_is_counted_and_not_trained_on(tmp_path):
    """Nothing but its false end had a label."""
    long, short = document(9, suffix=1), document(3, 50, suffix=1)
    masks = [[n > 7 for n in range(10)], [n > 1 for n in range(4)]]
    paths = [write_shard(tmp_path / "0.arrow", [(long[0], masks[0]), (short[0], masks[1])], True)]
    found, made = build(tmp_path / "cache", paths, entry(6), suffix=1)
    assert found["train"]["input_ids"] == [[10, 11, 12, 13, 14, 5], [50, 51, 52, 5]]
    assert found["train"]["labels"] == [[IGNORED] * 6, [IGNORED, IGNORED, 52, 5]]
    counts = made["splits"]["train"]
    assert counts["rows_without_trained_tokens"] == counts["rows_cut_without_trained_tokens"] == 1
    assert counts["rows_without_targets"] == [0]


def test_split_windows_carry_special_tokens_at_the_documents_own_ends(tmp_path):
    found = [document(9, prefix=1, suffix=2), document(5, 30, 1, 2), document(1, 50, 1, 2)]
    paths = [write_shard(tmp_path / "0.arrow", found)]
    rows, _ = build(tmp_path / "cache", paths, entry(6, "split"), 1, 2)
    assert rows["train"]["input_ids"] == [
        [1, 10, 11, 12, 13, 14], [15, 16, 17, 18, 5, 6],
        [1, 30, 31, 32, 33], [34, 5, 6],  # not [1, …, 34] and [5, 6], which has no text
        [1, 50, 5, 6],
    ]  # fmt: skip
    assert rows["train"]["labels"] == rows["train"]["input_ids"]
    packed, _ = build(tmp_path / "packed", paths, entry(6, "split", "best_fit"), 1, 2)
    for row in packed["train"]:
        starts = np.cumsum([0, *row["seq_lengths"][:-1]])
        assert [row["position_ids"][start] for start in starts] == [0] * len(starts)
        assert [row["labels"][start] for start in starts] == [IGNORED] * len(starts)


def test_documents_of_special_tokens_alone_are_left_out(tmp_path):
    paths = [write_shard(tmp_path / "0.arrow", [document(0, suffix=1), document(2, suffix=1)])]
    for overflow in ("truncate", "split", "drop"):
        found, made = build(tmp_path / overflow, paths, entry(6, overflow), suffix=1)
        assert found["train"]["input_ids"] == [[10, 11, 5]]
        assert made["documents"]["train"]["documents_empty"] == 1


def test_cache_json_says_what_is_there_and_two_builds_are_equal(tmp_path):
    paths = [write_shard(tmp_path / "0.arrow", [document(n % 9) for n in range(50)])]
    wanted = entry(8, "split", "best_fit", {"fraction": 0.1, "seed": 1}, "ab" * 16)
    provenance = {"model": "model", "sources": {"train": [{"path": "Größe.jsonl"}]}}
    trees = []
    for name in ("one", "two"):
        out = tmp_path / name / "8-abab"
        _, made = build(out, paths, wanted, provenance=provenance)
        trees.append(tree(out))
    assert trees[0] == trees[1]
    assert made["key"] == "ab" * 16
    assert made["sources"] == provenance["sources"]
    assert made["documents"]["train"]["documents"] == 50
    assert sorted(made["files"]) == sorted(set(trees[0]) - {"cache.json"})
    for name, said in made["files"].items():
        data = (out / name).read_bytes()
        assert said == {"bytes": len(data), "blake3": blake3(data).hexdigest()}
    assert os.listdir(tmp_path / "two") == ["8-abab"], "nothing temporary is left"


def test_a_cache_is_readable_with_pyarrow_alone(tmp_path):
    paths = [write_shard(tmp_path / "0.arrow", [document(4), document(2)])]
    build(tmp_path / "cache", paths, entry(8))
    folder = tmp_path / "cache" / "train"
    state = json.loads((folder / "state.json").read_text())
    rows = []
    for file in state["_data_files"]:
        with pa.ipc.open_stream(folder / file["filename"]) as reader:
            rows += reader.read_all()["input_ids"].to_pylist()
    assert rows == [[10, 11, 12, 13], [10, 11]]


def test_rows_are_gathered_a_thousand_at_a_time_and_fewer_where_they_are_long(
    tmp_path, monkeypatch
):
    gathered = []
    gather = Gatherer.columns

    def watched(self, found):
        made = gather(self, found)
        gathered.append((len(found), len(made["input_ids"][1])))
        return made

    monkeypatch.setattr(Gatherer, "columns", watched)
    paths = [write_shard(tmp_path / "0.arrow", [document(3)] * 2500, batch=1000)]
    plain, _ = build(tmp_path / "a", paths, entry(8))
    # The report gathers a few single rows.
    assert [rows for rows, _ in gathered if rows > 1] == [1000, 1000, 500]
    gathered.clear()
    monkeypatch.setattr(dataset, "TOKENS_IN_A_BATCH", 300)
    short, _ = build(tmp_path / "b", paths, entry(8))
    assert len(gathered) > 20 and max(tokens for _, tokens in gathered) <= 303
    assert short["train"][:] == plain["train"][:]


def test_documents_of_many_shards_in_one_row_keep_their_masks(tmp_path):
    """Packing mixes documents of all shards in each row."""
    count, paths, documents = 40, [], []
    for n in range(count):
        long, short = document(7, 100 * n + 10), document(1 + n % 3, 100 * n + 60)
        pair = [(long[0], [i % 3 == n % 3 for i in range(7)]), (short[0], [True] * len(short[0]))]
        documents += pair
        paths.append(write_shard(tmp_path / f"{n}.arrow", pair, masked=True))
    wanted = entry(10, packing="best_fit")
    found, _ = build(tmp_path / "cache", paths, wanted)
    labels = {tuple(ids): labelled(ids, [False, *mask[1:]]) for ids, mask in documents}
    for row in found["train"]:
        stops = np.cumsum(row["seq_lengths"]).tolist()
        for start, stop in zip([0, *stops], stops, strict=False):
            assert row["labels"][start:stop] == labels[tuple(row["input_ids"][start:stop])]


def test_validation_of_its_own_files(tmp_path):
    train = write_shard(tmp_path / "train.arrow", [document(3)] * 4)
    other = write_shard(tmp_path / "other.arrow", [document(2, 50)] * 3)
    paths = {"train": [train], "validation": [other]}
    found, made = build(tmp_path / "cache", paths, entry(8, validation="given"))
    assert found["train"]["input_ids"] == [[10, 11, 12]] * 4
    assert found["validation"]["input_ids"] == [[50, 51]] * 3
    assert made["documents"]["validation"]["documents"] == 3


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_validation_without_a_row(tmp_path, packing):
    paths = {
        "train": [write_shard(tmp_path / "train.arrow", [document(3)] * 4)],
        "validation": [write_shard(tmp_path / "empty.arrow", [])],
    }
    found, made = build(tmp_path / "cache", paths, entry(8, "drop", packing, "given"))
    assert len(found["train"]) == (4 if packing == "none" else 2)
    assert len(found["validation"]) == 0
    assert made["splits"]["validation"]["rows"] == 0
    assert found["validation"].features == found["train"].features
    long = write_shard(tmp_path / "long.arrow", [document(30)])
    found, _ = build(
        tmp_path / "dropped", paths | {"validation": [long]}, entry(8, "drop", packing, "given")
    )
    assert len(found["validation"]) == 0


def test_no_validation(tmp_path):
    paths = [write_shard(tmp_path / "0.arrow", [document(3)] * 4)]
    for number, validation in enumerate((None, {"fraction": 0.0, "seed": 1})):
        found, _ = build(tmp_path / str(number), paths, entry(8, validation=validation))
        assert list(found) == ["train"]


@pytest.mark.parametrize(
    ("documents", "masked", "said"),
    [
        ([], False, "no document is left to train on"),
        ([([], [])] * 3, False, "no document is left to train on"),
        ([document(9)] * 3, False, "overflow: drop, max_length may be too small"),
        ([document(4, mask=[False] * 4)], True, "leaves no token to train on; look at loss:"),
    ],
)
def test_nothing_to_train_on_leaves_nothing_behind(tmp_path, documents, masked, said):
    paths = [write_shard(tmp_path / "shards" / "0.arrow", documents, masked)]
    (tmp_path / "out").mkdir()
    wanted = entry(8, "drop", validation={"fraction": 0.5, "seed": 1})
    message = fails(lambda: build(tmp_path / "out" / "cache", paths, wanted), said)
    assert message.startswith("model, data, 8: ")
    assert not os.listdir(tmp_path / "out")


def test_packed_documents_of_one_token_leave_nothing_to_train_on(tmp_path):
    paths = [write_shard(tmp_path / "0.arrow", [document(1)] * 3)]
    wanted = entry(8, packing="best_fit")
    fails(lambda: build(tmp_path / "cache", paths, wanted), "leaves no token to train on")


def test_a_token_shard_that_was_cut_short_is_named(tmp_path):
    path = write_shard(tmp_path / "tokens/a.arrow", [document(9)])
    size = os.path.getsize(path)
    for wrong in (json.dumps({"bytes": size + 1}), "{", "{}"):
        beside(path).write_text(wrong)
        said = fails(lambda: build(tmp_path / "cache", [path], entry(16)), "verify --repair")
        assert "a.arrow is damaged" in said or "a.json is damaged" in said
    beside(path).write_text(json.dumps({"bytes": size}))
    build(tmp_path / "cache", [path], entry(16))


def test_missing_token_shard_is_named(tmp_path):
    gone = str(tmp_path / "gone.arrow")
    fails(lambda: dataset.build(entry(8), tokens({"train": [gone]}), tmp_path / "cache"),
          gone, "run snakemake again")  # fmt: skip
    assert not (tmp_path / "cache").exists()


def test_no_shard_at_all_is_no_document(tmp_path):
    wanted = entry(8, validation={"fraction": 0.5, "seed": 1})
    fails(lambda: build(tmp_path / "cache", [], wanted), "no document is left to train on")


@pytest.mark.parametrize("parts", [0, 2])
def test_a_token_shard_with_other_bytes_than_were_written(tmp_path, parts):
    """A cache of it would have checksums that fit."""
    paths = [write_shard(tmp_path / f"{n}.arrow", [([1, 2, 3], [True] * 3)] * 4) for n in range(2)]
    for path in map(Path, paths):
        about = {"bytes": path.stat().st_size, "checksum": hash_file(path)}
        path.with_suffix(".json").write_text(json.dumps(about))
    wanted = entry(8)
    build(tmp_path / "right", paths, wanted)
    data = bytearray(Path(paths[1]).read_bytes())
    data[data.index(bytes([1, 0, 2, 0, 3, 0]))] ^= 4
    Path(paths[1]).write_bytes(data)
    made_of = tokens({"train": paths})

    def make():
        if not parts:
            dataset.build(wanted, made_of, tmp_path / "wrong")
        for number in range(parts):
            dataset.build_part(wanted, made_of, tmp_path / f"part-{number}", number, parts)

    fails(make, "1.arrow is damaged: it has other bytes than were written", "verify --repair")
    assert not (tmp_path / "wrong").exists() and not (tmp_path / "part-1").exists()
