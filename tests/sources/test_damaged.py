"""Sources that are damaged, cut short, too large or odd: rows, or one message that names them."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import mmap
import os
import random
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from helpers.datafiles import fails, packed, pieces, source, texts_of, write, write_columnar
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.base import hashing
from tokencache.base.hashing import hash_file
from tokencache.errors import UserError
from tokencache.sources import cuts, json_columns, json_rows, text_rows
from tokencache.sources import read as sources
from tokencache.sources import source as readers
from tokencache.sources.source import Piece

TEXTS = [f"text {n} é日 " + "x" * (n % 50) for n in range(120)]
TABLES = {"a.parquet": "parquet", "file.arrow": "file", "stream.arrow": "stream"}
NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz", "a.csv.zst", "a.txt.gz",
         *TABLES]  # fmt: skip
SAMPLINGS = ["line", "paragraph", "document"]


@functools.cache
def good(name, folder):
    """The bytes of a file of this name; pyarrow writes some of them to a folder."""
    if name.endswith((".gz", ".zst")):
        stem, suffix = os.path.splitext(name)
        return packed(good(stem, folder), suffix)
    rows = [{"text": text, "n": str(n), "m": [{"role": text}]} for n, text in enumerate(TEXTS)]
    if name in TABLES:
        path = folder / f"whole {name}"
        write_columnar(path, TABLES[name], pa.table(columns(rows)), 25)
        return path.read_bytes()
    if name == "a.jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if name == "a.json":
        return json.dumps(rows).encode()
    if name == "a.txt":
        return "\n".join(TEXTS).encode()
    made = io.StringIO()
    writer = csv.writer(made, delimiter="\t" if name == "a.tsv" else ",")
    writer.writerow(["text", "n"])
    writer.writerows([row["text"] + '"\n,\t' * (n % 9 == 0), n] for n, row in enumerate(rows))
    return made.getvalue().encode()


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def damaged(data, seed):
    draw, data = random.Random(seed), bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = bytes(draw.choices(b'"\n\r\\{}[],:\x00\xff\xef', k=3))
            case 3:
                del data[at : at + draw.randrange(200)]
            case _:
                data[at : at + 8] = draw.randbytes(8)
    return bytes(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**32), st.sampled_from(SAMPLINGS))
def test_a_damaged_file_gives_rows_or_one_message(tmp_path_factory, name, seed, sample_by):
    folder = tmp_path_factory.getbasetemp()
    path = write(folder / name, damaged(good(name, folder), seed))
    found = source(path, sample_by=sample_by)
    wanted = ["text"] if "txt" in name else ["text", "n"]
    for read in (sources.read_text, sources.read_rows):
        try:
            shards, _ = cuts.look(found, 2000)
            for shard in shards:
                for _ in read(shard.piece, wanted, shard.key):
                    pass
        except UserError as error:
            assert path in str(error) and len(str(error)) < 1500


def test_the_files_are_good_before_they_are_damaged(tmp_path):
    for name in NAMES:
        found = texts_of(source(write(tmp_path / name, good(name, tmp_path))), shard_size=2000)
        assert len(found) == len(TEXTS) or name.startswith("a.txt")


# Cut short meanwhile


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.jsonl.gz"])
def test_a_file_that_is_cut_short_before_it_is_read_is_named(tmp_path, name):
    path = write(tmp_path / name, good(name, tmp_path))
    [(piece, key)] = pieces(source(path))
    os.truncate(path, 700)
    fails(lambda: list(sources.read_text(piece, ["text"], key)), path, "changed")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_is_cut_short_while_it_is_hashed_is_named(tmp_path, name, monkeypatch):
    monkeypatch.setattr(cuts, "BLOCK_BYTES", 1000)
    path = write(tmp_path / name, good(name, tmp_path))
    cut_short = functools.partial(cuts.look, told=lambda _: os.truncate(path, 1500))
    fails(lambda: cut_short(source(path), 2000), path, "changed while")


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_table_that_is_cut_short_while_it_is_read_is_named(tmp_path, kind):
    """Mapped into memory, it would end the process with a signal."""
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    texts = [random.Random(n).randbytes(2000).hex() for n in range(2000)]
    write_columnar(path, kind, pa.table({"text": texts, "n": texts}), 100)
    [(piece, key)] = pieces(source(path))
    for read in (sources.read_text, sources.read_rows):
        reading = read(piece, ["text"], key)
        next(reading)
        whole = path.read_bytes()
        os.truncate(path, 4096)
        fails(lambda r=reading: list(r), str(path), "changed while")
        path.write_bytes(whole)
    os.truncate(path, 4096)
    fails(lambda: sources.units(source(path)), str(path), "can't be read")


def test_no_source_is_mapped_into_memory(tmp_path, monkeypatch):
    def mapped(*_, **__):
        raise AssertionError("a file that is cut short would end the process")

    monkeypatch.setattr(mmap, "mmap", mapped)
    monkeypatch.setattr(pa, "memory_map", mapped)
    for name in NAMES:
        path = write(tmp_path / name, good(name, tmp_path))
        assert texts_of(source(path))
        assert hash_file(path) == blake3(good(name, tmp_path)).hexdigest()


def test_hashing_a_file_that_is_cut_short_ends(tmp_path, monkeypatch):
    path = write(tmp_path / "a", b"x" * 100_000)
    monkeypatch.setattr(hashing, "HASHED_BYTES", 1000)

    class Cutting:
        def __init__(self):
            self.bytes = 0

        def update(self, data):
            self.bytes += len(data)
            os.truncate(path, 3000)

        def hexdigest(self):
            return self.bytes

    monkeypatch.setattr(hashing, "blake3", Cutting)
    assert hash_file(path) == 3000


# Cuts


def cuts_of_whole(data, shard_size, separator):
    """Where a file is cut, said simply: what is in memory as a whole."""
    ends, start = [], 0

    def row_end(position):
        found = data.find(separator, position)
        return len(data) if found < 0 else found + len(separator)

    while start < len(data):
        end = row_end(start + shard_size // 2)
        while end < len(data) and end - start < 4 * shard_size:
            begin, end = end, row_end(end)
            if zlib.crc32(data[begin:end]) * (shard_size // 2) < (end - begin) << 32:
                break
        ends.append(end)
        start = end
    return ends


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"\n", b"\n\n", b"a", b"bc" * 20, b"d\n"]), max_size=80).map(
        b"".join
    ),
    st.integers(2, 100),
    st.integers(1, 50),
    st.sampled_from(["line", "paragraph"]),
)
def test_a_file_is_cut_at_the_same_places_however_it_is_read(
    tmp_path_factory, data, shard_size, block, sample_by
):
    path = write(tmp_path_factory.getbasetemp() / "a.txt", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "BLOCK_BYTES", block)
        found = cuts.cut(source(path, sample_by=sample_by), shard_size)
    separator = b"\n" if sample_by == "line" else b"\n\n"
    assert [shard.piece.stop for shard in found] == cuts_of_whole(data, shard_size, separator)
    assert [shard.key for shard in found] == [sources.digest(shard.piece) for shard in found]


def test_a_byte_order_mark_inside_a_file_makes_another_key(tmp_path):
    """At the start of a file it is dropped, elsewhere it is kept: other rows, another key."""
    first, second = b"one\n" * 100, b"\xef\xbb\xbftwo\n" * 100
    both = source(write(tmp_path / "a.txt", first + second))
    alone = source(write(tmp_path / "b.txt", second))
    inside = Piece(both, len(first), len(first) + len(second))
    [whole] = cuts.cut(alone, 2**20)
    texts = {}
    for piece in (inside, whole.piece):
        [table] = sources.read_text(piece, ["text"], sources.digest(piece))
        texts[sources.digest(piece)] = table["text"].to_pylist()[0]
    assert list(texts.values()) == ["\ufefftwo", "two"]
    assert whole.key == blake3(second).hexdigest()[: len(whole.key)]
    later = Piece(both, 4, len(first))
    assert sources.digest(later) == blake3(first[4:]).hexdigest()[: len(whole.key)]


# Bounds


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.txt.gz", ":1: a row is longer than 0 MiB"), ("a.txt", ":1: a row is longer"),
     ("a.jsonl.gz", ":1: a row is longer"), ("a.jsonl", ":1: a row is longer"),
     ("a.csv.gz", ":1: a row is longer than")],
)  # fmt: skip
def test_a_row_without_an_end_is_refused(tmp_path, name, said, monkeypatch):
    for module in (readers, cuts, json_columns):
        monkeypatch.setattr(module, "LONGEST_ROW", 100_000)
    for module in (readers, cuts):
        monkeypatch.setattr(module, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 10_000)
    data = b"0" * 1_000_000
    path = write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)

    def read():
        shards, _ = cuts.look(source(path), 50_000)
        for shard in shards:
            list(sources.read_text(shard.piece, ["text"], shard.key))

    fails(read, f"{path}{said}")
    fails(lambda: texts_of(source(path)), f"{path}{said}")


def test_what_is_read_as_a_whole_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_ROW", 100_000)
    monkeypatch.setattr(json_rows, "LONGEST_JSON", 100_000)
    text = source(
        write(tmp_path / "a.txt.gz", gzip.compress(b"0\n" * 100_000)), sample_by="document"
    )
    fails(lambda: texts_of(text), "a.txt.gz: it holds more than", "sample_by: line or paragraph")
    rows = write(tmp_path / "a.json.gz", gzip.compress(b"[" + b'{"text": "x"},' * 100_000))
    fails(lambda: sources.columns(source(rows)), "a.json.gz: it holds more than", "JSON Lines")


# Names


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_column_whose_name_is_no_text_is_refused(tmp_path, kind):
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    write_columnar(path, kind, pa.table({"n@me": ["x"], "text": ["y"]}), 1)
    path.write_bytes(path.read_bytes().replace(b"n@me", b"n\xffme"))
    for run in (sources.columns, lambda s: cuts.look(s, 1000)):
        fails(
            lambda r=run: r(source(path)), str(path), "name of a column is invalid UTF-8: n\\xffme"
        )


def test_a_broken_value_of_a_table_is_no_crash(tmp_path):
    """Its offsets lead out of the column, beside text that is no UTF-8."""
    for seed in range(40):
        path = tmp_path / "a.arrow"
        bad = pa.array([b"x\xff", b"yy"] * 50).view(pa.string())
        write_columnar(
            path, "file", pa.table({"m": pa.array([[v] for v in ["a"] * 100]), "text": bad}), 50
        )
        path.write_bytes(damaged(path.read_bytes(), seed))
        try:
            for piece, key in pieces(source(path)):
                list(sources.read_rows(piece, ["text", "m"], key))
        except UserError:
            pass
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    assert texts_of(source(tmp_path / "b.parquet")) == ["x"]
