import gzip
import json

import pyarrow as pa
import pyarrow.csv
import pytest
from helpers.datafiles import (
    fails,
    jsonl,
    packed,
    pieces,
    rows_of,
    source,
    texts_of,
    write,
    write_columnar,
)

from tokencache.sources import identity, read
from tokencache.sources import source as readers

TEXTS = [
    "plain",
    'Größe, "quoted"',
    "two\nlines",
    "日本語 🙂",
    "",
    "nul\x00 and \u2028 and \x85",
    "2020-01-01",
    "comma, tab\t, é",
]


# Every format reads back what was written


@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".zstd"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
def test_formats_of_bytes_read_back_what_was_written(tmp_path, suffix, compression):
    table = pa.table({"text": TEXTS, "n": [str(i) for i in range(len(TEXTS))]})
    if suffix in (".csv", ".tsv"):
        sink = pa.BufferOutputStream()
        delimiter = "\t" if suffix == ".tsv" else ","
        pa.csv.write_csv(table, sink, pa.csv.WriteOptions(delimiter=delimiter))
        data = sink.getvalue().to_pybytes()
    elif suffix == ".json":
        data = json.dumps(table.to_pylist()).encode()
    else:
        data = jsonl(TEXTS).encode()
    found = source(write(tmp_path / f"a{suffix}{compression}", packed(data, compression)))
    assert read.columns(found) == ["text", "n"]
    assert texts_of(found) == TEXTS
    assert [row["text"] for row in rows_of(found, ["text", "n"])] == TEXTS


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_text_is_sampled_by_line_paragraph_or_document(tmp_path, compression):
    data = "\ufeffone\r\ntwo\n\n\nthree\nfour\n\nfive".encode()
    path = write(tmp_path / f"a.txt{compression}", packed(data, compression))
    assert read.columns(source(path)) == ["text"]
    assert texts_of(source(path)) == ["one", "two", "", "", "three", "four", "", "five"]
    assert texts_of(source(path, sample_by="paragraph")) == ["one\ntwo", "three\nfour", "five"]
    document = "one\ntwo\n\n\nthree\nfour\n\nfive"
    assert texts_of(source(path, sample_by="document")) == [document]
    assert rows_of(source(path, sample_by="document"), ["text"]) == [{"text": document}]


STRING_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
]


@pytest.mark.parametrize("type", STRING_TYPES, ids=str)
@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_parquet_and_arrow_read_back_every_type_of_text(tmp_path, kind, type):
    values = [*TEXTS, None, "last"]
    text = pa.array(values, pa.string()).cast(type)
    table = pa.table({"n": pa.array(range(10)), "text": text})
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    found = source(write_columnar(tmp_path / f"a{suffix}", kind, table, 3))
    assert read.columns(found) == ["n", "text"]
    assert len(pieces(found, 1)) == 4
    assert texts_of(found) == texts_of(found, shard_size=1) == values
    assert [r["text"] for r in rows_of(found, ["text"], 1)] == values


@pytest.mark.parametrize("kind", ["parquet", "file", "stream", "jsonl"])
def test_rows_keep_nested_values(tmp_path, kind):
    messages = [[{"role": "user", "content": f"hi {i}"}] for i in range(2500)]
    tools = ["[]"] * 2500
    if kind == "jsonl":
        lines = (json.dumps({"m": m, "t": t}) for m, t in zip(messages, tools, strict=True))
        found = source(write(tmp_path / "a.jsonl", "\n".join(lines)))
    else:
        suffix = ".parquet" if kind == "parquet" else ".arrow"
        table = pa.table({"m": messages, "t": tools})
        found = source(write_columnar(tmp_path / f"a{suffix}", kind, table, 2000))
    assert [row["m"] for row in rows_of(found, ["m", "t"])] == messages


def test_large_tables_come_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("tokencache.sources.columnar.CHUNK_BYTES", 10_000)
    texts = [f"{i} " + "x" * 100 for i in range(1000)]
    for kind, name in (("parquet", "a.parquet"), ("file", "a.arrow")):
        found = source(write_columnar(tmp_path / name, kind, pa.table({"text": texts}), 1000))
        [(piece, key)] = pieces(found)
        tables = list(read.read_text(piece, ["text"], key))
        assert len(tables) > 5
        assert [t for table in tables for t in table["text"].to_pylist()] == texts


def test_empty_files_have_no_columns_and_no_rows(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"):
        found = source(write(tmp_path / name, ""))
        assert read.columns(found) == []
        assert identity.cut(found, 1000) == []
    for name, data in (
        ("b.jsonl", "\n \n\r\n"),
        ("b.csv", "\n\n"),
        ("b.json", " \n"),
        ("c.csv", "a,b"),
    ):
        assert texts_of(source(write(tmp_path / name, data)), "a") == []
    empty = source(write(tmp_path / "b.jsonl.gz", gzip.compress(b"")))
    assert read.columns(empty) == [] and texts_of(empty) == []
    table = pa.table({"text": pa.array([], pa.string())})
    found = source(write_columnar(tmp_path / "c.parquet", "parquet", table, 1))
    assert read.columns(found) == ["text"] and texts_of(found) == []


# Encoding


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.json"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\x80", b"\xed\xa0\xbd", b"\xe6\x97"])
def test_invalid_utf8_is_named_with_its_line(tmp_path, name, bad):
    if name == "a.jsonl":
        data = b'{"text": "x"}\n{"text": "y", "other": "ab' + bad + b'"}\n'
    elif name == "a.json":
        data = b'[{"text": "x"},\n{"text": "y' + bad + b'"}]'
    else:
        data = b"text\nab" + bad + b"c\n"
    found = source(write(tmp_path / name, data))
    fails(lambda: texts_of(found), f"{name}:2: invalid UTF-8", "save the file as UTF-8")


def test_utf16_is_invalid_utf8(tmp_path):
    found = source(write(tmp_path / "a.txt", "text".encode("utf-16")))
    fails(lambda: texts_of(found), "a.txt:1: invalid UTF-8: byte 0xff, number 1 of the line")


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_invalid_utf8_in_columns_is_named_with_its_row(tmp_path, kind):
    bad = pa.array([b"x", b"y", b"ab\xff"]).view(pa.string())
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    found = source(write_columnar(tmp_path / f"a{suffix}", kind, pa.table({"text": bad}), 2))
    fails(lambda: texts_of(found), "row 3", "'text' is invalid UTF-8")
    fails(lambda: rows_of(found, ["text"]), "row 3", "'text' is invalid UTF-8")


# CSV, JSON, text, columns of other types


def test_csv_keeps_every_value_as_text(tmp_path):
    path = write(
        tmp_path / "a.csv", '\ufeffa,"b, ""c"""\r\n1.50,NULL\r\n\r\n,"x\r\ny"\r\n2020-01-01,true'
    )
    found = source(path)
    assert read.columns(found) == ["a", 'b, "c"']
    assert texts_of(found, "a") == ["1.50", "", "2020-01-01"]
    assert texts_of(found, 'b, "c"') == ["NULL", "x\r\ny", "true"]


def test_a_csv_header_with_one_name_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,id,text\na,1,b\n")
    fails(lambda: read.columns(source(path)), f"{path}: two columns are called 'text'")
    unnamed = write(tmp_path / "b.csv", "text,,\na,1,b\n")
    assert texts_of(source(unnamed), "text") == ["a"]


def test_a_broken_row_of_csv_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"1\n2",3\n\nx,y\n1,2,3\n4,5\n')
    fails(lambda: texts_of(source(path), "a"), f"{path}:6: a row of 3 values under a header of 2")
    packed_path = write(tmp_path / "a.csv.gz", gzip.compress(b"a,b\n1\n"))
    fails(lambda: texts_of(source(packed_path), "a"), f"{packed_path}:2: a row of 1 values")


def test_a_quote_that_is_never_closed_in_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1000)
    path = write(tmp_path / "a.csv", 'a,b\n1,2\n"' + "x,y\n" * 1000)
    fails(lambda: texts_of(source(path), "a"), path, "a quote", "never closed")


def test_a_missing_column_is_named_with_those_there(tmp_path):
    table = pa.table({"a": ["x"], "b": ["y"]})
    paths = [
        write(tmp_path / "a.csv", "a,b\nx,y\n"),
        write(tmp_path / "a.json", '[{"a": "x", "b": "y"}]'),
        write_columnar(tmp_path / "a.parquet", "parquet", table, 1),
        write_columnar(tmp_path / "a.arrow", "file", table, 1),
    ]
    for path in paths:
        fails(lambda p=path: texts_of(source(p), "c"), path, "no column 'c'", "there are: a, b")
        fails(lambda p=path: rows_of(source(p), ["c"]), path, "no column 'c'", "there are: a, b")
    text = write(tmp_path / "a.txt", "x")
    fails(lambda: texts_of(source(text), "c"), text, "no column 'c'", "there are: text")


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@pytest.mark.parametrize(
    "values", [[1, 2], [b"x", b"y"], [["x"], ["y"]]], ids=["int", "bytes", "list"]
)
def test_columns_that_are_no_text_are_refused(tmp_path, kind, values):
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    table = pa.table({"text": values})
    found = source(write_columnar(tmp_path / f"a{suffix}", kind, table, 2))
    fails(lambda: texts_of(found), "column 'text' is of type", "not text", "write it as a string")


def test_broken_and_cut_off_files_are_named(tmp_path):
    data = jsonl(TEXTS * 100).encode()
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        whole = packed(data, name[-4:].lstrip("l"))
        path = write(tmp_path / name, whole[: len(whole) // 2])
        fails(lambda p=path: texts_of(source(p)), path, "can't be unpacked", "get it again")
        write(tmp_path / name, b"no such thing")
        fails(lambda p=path: read.columns(source(p)), path, "can't be unpacked")
    for name in ("a.parquet", "a.arrow"):
        path = write(tmp_path / name, b"no such thing, none at all")
        for run in (read.columns, read.units, lambda s: identity.cut(s, 1000)):
            fails(lambda r=run, p=path: r(source(p)), path, "can't be read as")
