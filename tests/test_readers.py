import gzip
import json
import os

import pyarrow as pa
import pyarrow.csv
import pytest
from datafiles import (
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
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache import fingerprint, readers, readers_json, sources
from tokencache.sources import Piece

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
    assert sources.columns(found) == ["text", "n"]
    assert texts_of(found) == TEXTS
    assert [row["text"] for row in rows_of(found, ["text", "n"])] == TEXTS


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_text_is_sampled_by_line_paragraph_or_document(tmp_path, compression):
    data = "\ufeffone\r\ntwo\n\n\nthree\nfour\n\nfive".encode()
    path = write(tmp_path / f"a.txt{compression}", packed(data, compression))
    assert sources.columns(source(path)) == ["text"]
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
    assert sources.columns(found) == ["n", "text"]
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
    monkeypatch.setattr("tokencache.readers_arrow.CHUNK_BYTES", 10_000)
    texts = [f"{i} " + "x" * 100 for i in range(1000)]
    for kind, name in (("parquet", "a.parquet"), ("file", "a.arrow")):
        found = source(write_columnar(tmp_path / name, kind, pa.table({"text": texts}), 1000))
        [(piece, key)] = pieces(found)
        tables = list(sources.read_text(piece, ["text"], key))
        assert len(tables) > 5
        assert [t for table in tables for t in table["text"].to_pylist()] == texts


def test_empty_files_have_no_columns_and_no_rows(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"):
        found = source(write(tmp_path / name, ""))
        assert sources.columns(found) == []
        assert fingerprint.cut(found, 1000) == []
    for name, data in (
        ("b.jsonl", "\n \n\r\n"),
        ("b.csv", "\n\n"),
        ("b.json", " \n"),
        ("c.csv", "a,b"),
    ):
        assert texts_of(source(write(tmp_path / name, data)), "a") == []
    empty = source(write(tmp_path / "b.jsonl.gz", gzip.compress(b"")))
    assert sources.columns(empty) == [] and texts_of(empty) == []
    table = pa.table({"text": pa.array([], pa.string())})
    found = source(write_columnar(tmp_path / "c.parquet", "parquet", table, 1))
    assert sources.columns(found) == ["text"] and texts_of(found) == []


# JSON Lines


def test_jsonl_takes_what_is_odd_and_valid(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "mark"}\r\n',
        b"\n",
        b"  \t\r\n",
        b'{"text": null}\n',
        b'{"other": [1, {"a": null}]}\n',
        b'   {"text": "nul \\u0000 \\ud83d\\ude42 \\u2028"}\n',
        b'{"other": "other type", "text": "x"}\n',
        b'{"n": NaN, "big": ' + b"1" * 4000 + b', "text": "y"}',
    ]
    path = write(tmp_path / "a.jsonl", b"".join(lines))
    wanted = ["mark", None, None, "nul \x00 \U0001f642 \u2028", "x", "y"]
    assert texts_of(source(path)) == wanted
    assert [row.get("text") for row in rows_of(source(path), ["text"])] == wanted
    assert "text" not in rows_of(source(path), ["text"])[2]


def test_jsonl_takes_the_last_of_two_equal_keys(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "text": "b"}\n{"text": "c"}\n')
    assert texts_of(source(path)) == ["b", "c"]


BROKEN = {
    '{"text": "x"\n': ("broken JSON", "mend or remove"),
    '{"text": "x"} {"text": "y"}\n': ("broken JSON: Extra data",),
    '{"text":\n"x"}\n': ("broken JSON",),
    "{'text': 'x'}\n": ("broken JSON", "column 2"),
    '{"text": "a\x01b"}\n': ("broken JSON: Invalid control character",),
    '{"text": "a\x00b"}\n': ("broken JSON: Invalid control character",),
    "null\n": ("the row is null, not an object",),
    "5\n": ("the row is the number 5",),
    '["x"]\n': ("the row is a list",),
    '"x"\n': ("the row is a string",),
    "garbage\n": ("broken JSON",),
    '{"text": 5}\n': ("'text' is the number 5, not text", "make it a string"),
    '{"text": 1.5}\n': ("the number 1.5",),
    '{"text": true}\n': ("'text' is true",),
    '{"text": ["x"]}\n': ("'text' is a list",),
    '{"text": {"x": 1}}\n': ("'text' is an object",),
    '{"text": "a \\ud83d b"}\n': ("half a character, \\ud83d",),
    '{"text": "a \\ude42 b"}\n': ("half a character, \\ude42",),
    '{"text": "x"}\r{"text": "y"}\r\n': ("broken JSON",),
}


@pytest.mark.parametrize("line", BROKEN)
@pytest.mark.parametrize("before", [0, 7])
def test_a_broken_line_of_jsonl_is_named(tmp_path, line, before, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 64)
    good = '\n{"text": "fine"}\r\n'
    path = write(tmp_path / "a.jsonl", good * before + line + good)
    whole = Piece(source(path), 0, os.path.getsize(path))
    key = sources.digest(whole)
    at = f"{path}:{2 * before + 1}: "
    fails(lambda: list(sources.read_text(whole, ["text"], key)), at, *BROKEN[line])


def test_lines_are_counted_from_the_start_of_the_file(tmp_path):
    good = jsonl(f"fine and well {i}" for i in range(300))
    path = write(tmp_path / "a.jsonl", good + '{"text": 5}\n' + '{"text": \n')
    cuts = pieces(source(path), 1024)
    assert len(cuts) > 3
    piece, key = cuts[-1]
    assert piece.start > 0
    fails(lambda: list(sources.read_text(piece, ["text"], key)), f"{path}:301: ")
    fails(lambda: list(sources.read_rows(piece, ["text"], key)), f"{path}:302: broken JSON")


@pytest.mark.parametrize(
    "lines", ['{"a":\n{"text":"x"}}{"text":"y"}', '{"text":"x"}{"text":"y"}\n\n']
)
def test_objects_over_lines_and_on_one_line_are_no_json_lines(tmp_path, lines):
    """pyarrow takes them, and there are as many rows as lines."""
    found = source(write(tmp_path / "a.jsonl", lines))
    fails(lambda: texts_of(found), "a.jsonl:1: broken JSON")


def test_lone_nulls_never_reach_pyarrow(tmp_path):
    """pyarrow 26 crashes on a block that starts with such a row."""
    for chunk in (b"null\n", b'\n null\n{"a": "x"}\n', b'{"a": "x"}\nnull\n', b"\r\nnull"):
        assert readers_json._arrow_table(chunk, ["a"]) is None


def test_deep_nesting_is_an_error_and_no_crash(tmp_path):
    deep = '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n"
    found = source(write(tmp_path / "a.jsonl", deep))
    fails(lambda: texts_of(found), "a.jsonl:1: ")


def test_an_integer_that_python_does_not_take_is_named(tmp_path):
    found = source(write(tmp_path / "a.jsonl", '{"text": "x", "n": ' + "1" * 5000 + "}\n"))
    fails(lambda: rows_of(found, ["text"]), "a.jsonl:1: JSON that can't be read")


def test_very_long_lines_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1024)
    texts = ["a" * 100_000, "b", "é" * 30_000, "c" * 2000]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert texts_of(source(path)) == texts


def test_a_key_may_miss_in_a_row_but_not_in_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": "x"}\n' * 500 + '{"b": "y"}\n' * 500)
    found = source(path)
    assert texts_of(found, "b", 1024).count("y") == 500
    assert texts_of(found, "a", 1024).count("x") == 500
    said = fails(lambda: texts_of(found, "c"), path, "no column 'c'", "there are: a, b")
    assert said == fails(lambda: rows_of(found, ["a", "c"]))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
JSON_ROWS = st.lists(
    st.dictionaries(st.sampled_from(["x", "y"]), JSON_VALUES, max_size=2).flatmap(
        lambda row: st.fixed_dictionaries({}, optional={"text": st.none() | st.text()}).map(
            row.__or__
        )
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=JSON_ROWS, ascii=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_pyarrow_and_python_read_jsonl_alike(tmp_path_factory, rows, ascii, end):
    lines = [json.dumps(row, ensure_ascii=ascii) for row in [{"text": "first"}, *rows]]
    path = write(tmp_path_factory.getbasetemp() / "alike.jsonl", end.join(lines))
    wanted = ["first", *(row.get("text") for row in rows)]
    assert texts_of(source(path)) == wanted
    assert [row.get("text") for row in rows_of(source(path), ["text"])] == wanted


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
    assert sources.columns(found) == ["a", 'b, "c"']
    assert texts_of(found, "a") == ["1.50", "", "2020-01-01"]
    assert texts_of(found, 'b, "c"') == ["NULL", "x\r\ny", "true"]


def test_a_csv_header_with_one_name_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,id,text\na,1,b\n")
    fails(lambda: sources.columns(source(path)), f"{path}: two columns are called 'text'")
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


def test_json_is_an_array_or_data(tmp_path):
    found = source(write(tmp_path / "a.json", '\ufeff{"data": [{"text": "x"}, {"b": 1}]}'))
    assert sources.columns(found) == ["text", "b"]
    assert texts_of(found) == ["x", None]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"text": "x"}\n{"text": "y"}\n', (":2: broken JSON: Extra data", "set format: jsonl")),
        ('{"text": "x"}', ("must be an array of objects", "format: jsonl")),
        ("5", ("must be an array of objects",)),
        ('[\n{"text": "x",}]', (":2: broken JSON",)),
        ('[{"text": "x"}, 5]', ("row 2: the row is the number 5",)),
        ('[{"text": "x"}, {"text": 5}]', ("row 2: column 'text' is the number 5",)),
        ('[{"text": "\\ud83d"}]', ("row 1: ", "half a character")),
    ],
)
def test_json_that_is_no_rows_says_what_to_do(tmp_path, data, said):
    path = write(tmp_path / "a.json", data)
    fails(lambda: texts_of(source(path)), path, *said)


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
        fails(lambda p=path: sources.columns(source(p)), path, "can't be unpacked")
    for name in ("a.parquet", "a.arrow"):
        path = write(tmp_path / name, b"no such thing, none at all")
        for run in (sources.columns, sources.units, lambda s: fingerprint.cut(s, 1000)):
            fails(lambda r=run, p=path: r(source(p)), path, "can't be read as")
